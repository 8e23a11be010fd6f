"""The paper's tables with seeds, controls and significance tests."""
