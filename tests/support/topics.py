"""Texts of three topics."""


def topic_texts(count: int) -> list[tuple[str, str]]:
    """Return ``count`` (text, label) pairs of three topics that a bag of words tells apart; the labels go round."""
    words = {"animals": "furry dog cat horse paw tail", "food": "sweet bread soup apple salt oven", "sky": "blue cloud sun star moon rain"}
    pairs = []
    for n in range(count):
        label = list(words)[n % 3]
        own = words[label].split()
        pairs.append((f"{own[n % 6]} and {own[(n // 3) % 6]} number {n}", label))
    return pairs
