"""`segmint study` for faces and plates that redaction missed."""
