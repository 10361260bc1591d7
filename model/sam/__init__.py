"""The Segment Anything Model: image encoders, prompt encoder, mask decoder, and predictor."""
