"""ggml's Vulkan backend for inferd of the same version, which finds and loads it by itself."""
