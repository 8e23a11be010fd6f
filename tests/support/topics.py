"""Texts of three topics."""


def topic_texts(count: int) -> list[tuple[str, str]]:
    """Return ``count`` (text, label) pairs of three topics that a bag of words can separate, with labels in turn."""
    words = {"animals": "furry dog cat horse paw tail", "food": "sweet bread soup apple salt oven", "sky": "blue cloud sun star moon rain"}
    pairs = []
    for n in range(count):
        label = list(words)[n % 3]
        vocabulary = words[label].split()
        pairs.append((f"{vocabulary[n % 6]} and {vocabulary[(n // 3) % 6]} number {n}", label))
    return pairs
