"""How the embedded models were trained: images of an emoji font, words of WordNet, and six small models."""
