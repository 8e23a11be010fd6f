"""Store → teacher → cached outputs → student → Hugging Face model. Imports lugpi_core, never featurize."""
