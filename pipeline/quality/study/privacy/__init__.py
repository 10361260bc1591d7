"""`segmint study` of faces and plates that redaction missed."""
