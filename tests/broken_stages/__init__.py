"""In the place of the package `pipelines`: a denoise stage in which one rank of a gang does not do its part."""
