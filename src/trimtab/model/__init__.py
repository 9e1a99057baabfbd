"""The only room that touches Hugging Face modules or registers a hook."""
