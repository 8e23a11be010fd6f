"""The tokenizers, and the text tower trained on English words: glosses against lemmas and hypernyms.

Shapes: B texts, L tokens, D width, E width of the joint space.
"""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dev.embedded_models.world import World

CONTEXT = 40
WIDTH, LAYERS, HEADS, JOINT = 160, 2, 5, 160
VOCABULARY = 6000
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LONGEST_NAMES = 16
_POOL = 8  # batches that are sampled at once and sorted by length


def clip_tokenizer(texts: Sequence[str], *, size: int = VOCABULARY) -> Any:
    """Return a CLIPTokenizer with byte pairs of the texts (Sennrich et al. 2016, arXiv 1508.07909). Every byte is a token, so that it
    encodes any text; the end of a text has the highest id, by which open_clip finds it."""
    from tokenizers import Tokenizer, models, trainers
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    start, end = "<|startoftext|>", "<|endoftext|>"

    def numbered(tokens: Sequence[str]) -> dict[str, int]:
        return {token: number for number, token in enumerate(dict.fromkeys(tokens))}

    single = [*letters, *(f"{letter}</w>" for letter in letters)]
    plain = CLIPTokenizer(vocab=numbered([*single, start, end]), merges=[]).backend_tokenizer
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer, trained.pre_tokenizer = plain.normalizer, plain.pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=size - 2, end_of_word_suffix="</w>", initial_alphabet=letters, show_progress=False)
    trained.train_from_iterator(texts, trainer)
    import json

    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    vocabulary = numbered([*single, *("".join(pair) for pair in merges), start, end])
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT)


def word_piece_tokenizer(texts: Sequence[str], *, size: int = VOCABULARY, longest: int = 128) -> Any:
    """Return a DistilBertTokenizer with word pieces of the texts; every printable ASCII character is one of them."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import DistilBertTokenizer

    trained = BertWordPieceTokenizer(lowercase=True)
    letters = [chr(code) for code in range(33, 127)]
    trained.train_from_iterator(texts, vocab_size=size, initial_alphabet=letters, special_tokens=list(_SPECIAL), show_progress=False)
    found = sorted(trained.get_vocab().items(), key=lambda pair: pair[1])
    pieces = [*_SPECIAL, *(piece for piece, _ in found if piece not in _SPECIAL), *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return DistilBertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=longest)


class Bag(nn.Module):
    """The mean of a text's token embeddings in the joint space: a tower without a transformer, which learns most of what words mean in a
    fiftieth of the time."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(tokenizer), WIDTH)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.projection = nn.Linear(WIDTH, JOINT, bias=False)
        self.scale = nn.Parameter(torch.tensor(2.66))
        self.padding = tokenizer.pad_token_id

    def forward(self, ids_BL: torch.Tensor) -> torch.Tensor:
        """Return texts in the joint space, of length one: [B, E]."""
        is_token_BL1 = (ids_BL != self.padding).unsqueeze(-1)
        mean_BD = (self.embedding(ids_BL) * is_token_BL1).sum(dim=1) / is_token_BL1.sum(dim=1)
        return nn.functional.normalize(self.projection(mean_BD), dim=-1)


class Tower(nn.Module):
    """CLIP's text model with its projection to the joint space and the temperature of the loss."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        from transformers import CLIPTextConfig, CLIPTextModel

        config = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            max_position_embeddings=CONTEXT,
            hidden_act="gelu",
            attention_dropout=0.1,
            projection_dim=JOINT,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        self.model = CLIPTextModel(config)
        self.projection = nn.Linear(WIDTH, JOINT, bias=False)
        self.scale = nn.Parameter(torch.tensor(2.66))  # exp: 1 / .07, as in CLIP

    def initialise_from(self, bag: Bag) -> None:
        """Copy the embeddings of a trained bag of words, scaled to the usual initial size."""
        with torch.no_grad():
            weight = bag.embedding.weight
            self.model.get_input_embeddings().weight.copy_(0.02 * weight / weight.std())

    def forward(self, ids_BL: torch.Tensor) -> torch.Tensor:
        """Return texts in the joint space, of length one: [B, E]."""
        return nn.functional.normalize(self.projection(self.model(input_ids=ids_BL).pooler_output), dim=-1)


def token_ids(tokenizer: Any, texts: Sequence[str], *, longest: int = CONTEXT) -> list[torch.Tensor]:
    """Return the ids of each text, cut to the context, without padding."""
    return [torch.tensor(ids) for ids in tokenizer(list(texts), truncation=True, max_length=longest)["input_ids"]]


def pad(rows: Sequence[torch.Tensor], padding: int) -> torch.Tensor:
    """Return ids [B, L], padded to the longest row."""
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=padding)


def contrastive(left_BE: torch.Tensor, right_BE: torch.Tensor, same_BB: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the symmetric cross entropy of a batch of pairs, several of which may share a right side (Radford et al. 2021,
    arXiv 2103.00020, figure 3; Khosla et al. 2020, arXiv 2004.11362, eq. 2 for several positives)."""
    logits_BB = scale.clamp(max=4.6).exp() * left_BE @ right_BE.T
    target_BB = same_BB / same_BB.sum(dim=1, keepdim=True)
    both = nn.functional.cross_entropy(logits_BB, target_BB) + nn.functional.cross_entropy(logits_BB.T, target_BB.T.contiguous())
    return both / 2


class WordPairs:
    """Pairs of texts with one meaning: a gloss, and words and hypernyms of its synset in new combinations at every step."""

    def __init__(self, world: World, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._synsets = list(world.synsets.values())
        self._above = [[world.synsets[up].words for up in world.tree.chains.get(one.id, ())[:6]] for one in self._synsets]
        self._gloss = token_ids(tokenizer, [one.gloss for one in self._synsets])

    def batch(self, size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return ids of glosses [B, L], ids of words [B, L'], and which words are equal, [B, B]."""
        chance = random.Random(seed)
        numbers = chance.sample(range(len(self._synsets)), min(_POOL * size, len(self._synsets)))
        numbers.sort(key=lambda number: (len(self._gloss[number]), number))  # of similar length: less padding
        start = chance.randrange(0, max(1, len(numbers) - size + 1))
        chosen = numbers[start : start + size]
        names = [self._names(number, chance) for number in chosen]
        labels = {text: number for number, text in enumerate(dict.fromkeys(names))}
        label = torch.tensor([labels[text] for text in names])
        padding = self._tokenizer.pad_token_id
        glosses = [self._with_dropped_words(self._gloss[number], chance) for number in chosen]
        return (
            pad(glosses, padding),
            pad(token_ids(self._tokenizer, names, longest=_LONGEST_NAMES), padding),
            (label[:, None] == label[None, :]).float(),
        )

    def _names(self, number: int, chance: random.Random) -> str:
        """Return words of the synset, of its hypernyms, or of both: "hedgehog", "mammal, animal", "hedgehog: animal"."""
        above = [chance.choice(words) for words in chance.sample(self._above[number], min(len(self._above[number]), chance.randint(1, 3)))]
        own = self._synsets[number].words
        words = ", ".join(chance.sample(own, chance.randint(1, min(3, len(own)))))
        form = chance.random()
        if not above or form < 0.25:
            return words
        return ", ".join(above) if form < 0.5 else f"{words}: {', '.join(above)}"

    @staticmethod
    def _with_dropped_words(ids: torch.Tensor, chance: random.Random) -> torch.Tensor:
        """Return the ids without some of them, so that no single word is decisive."""
        keep = [0, *(place for place in range(1, len(ids) - 1) if chance.random() > 0.15), len(ids) - 1]
        return ids[keep]


@torch.no_grad()
def pipeline_embeddings(text_model: Any, tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:
    """Return a text model's last hidden states, with texts padded to the context as in a pipeline: float16 [B, 40, D]."""
    text_model.eval()
    states = []
    for start in range(0, len(texts), 512):
        ids = tokenizer(list(texts[start : start + 512]), padding="max_length", max_length=CONTEXT, truncation=True)["input_ids"]
        states.append(text_model(input_ids=torch.tensor(ids)).last_hidden_state.half())
    return torch.cat(states)


@torch.no_grad()
def embed_texts(tower: Tower, tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:
    """Return texts in the joint space: [B, E]. Padding changes nothing, so texts of similar length share a batch."""
    tower.eval()
    rows = token_ids(tokenizer, texts)
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    joint = torch.empty(len(rows), JOINT)
    for start in range(0, len(rows), 512):
        part = order[start : start + 512]
        joint[part] = tower(pad([rows[row] for row in part], tokenizer.pad_token_id))
    return joint
