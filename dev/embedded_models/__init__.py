"""The recipe of the embedded models: pictures of an emoji font, words of WordNet, and six small models trained on them."""
