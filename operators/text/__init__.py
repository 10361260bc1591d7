"""CLIP, which embeds texts and crops of images, and labels of masks that come from it."""
