"""Text → prompt → image → tokens → store. Imports lugpi_core, never train."""
