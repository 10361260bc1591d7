"""CLIP, which embeds texts and crops of images, and what uses it: labels of masks and text prompts."""
