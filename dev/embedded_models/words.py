"""The tokenizers, and the text tower that learns English words: glosses against lemmas and hypernyms.

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
_POOL = 8  # batches drawn at once and sorted by length


def clip_tokenizer(texts: Sequence[str], *, size: int = VOCABULARY) -> Any:
    """Return a CLIPTokenizer with byte pairs of the texts (Sennrich et al. 2016, arXiv 1508.07909): every byte is a token, so that it
    reads anything; the end of a text has the highest number, by which open_clip finds it."""
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
    """Return a DistilBertTokenizer with word pieces of the texts; every printable ASCII character is one."""
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
    """The mean of a text's token embeddings, in the joint space: a tower without a transformer, which learns most of what words mean in
    a fiftieth of the time."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(tokenizer), WIDTH)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.projection = nn.Linear(WIDTH, JOINT, bias=False)
        self.scale = nn.Parameter(torch.tensor(2.66))
        self.padding = tokenizer.pad_token_id

    def forward(self, ids_BL: torch.Tensor) -> torch.Tensor:
        """Return texts in the joint space, of length one: [B, E]."""
        there_BL1 = (ids_BL != self.padding).unsqueeze(-1)
        mean_BD = (self.embedding(ids_BL) * there_BL1).sum(dim=1) / there_BL1.sum(dim=1)
        return nn.functional.normalize(self.projection(mean_BD), dim=-1)


class Tower(nn.Module):
    """CLIP's text model, with its projection into a joint space and the loss's temperature."""

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

    def begin_with(self, bag: Bag) -> None:
        """Take the embeddings that a bag of words has learnt, in the size that they have at a start."""
        with torch.no_grad():
            learnt = bag.embedding.weight
            self.model.get_input_embeddings().weight.copy_(0.02 * learnt / learnt.std())

    def forward(self, ids_BL: torch.Tensor) -> torch.Tensor:
        """Return texts in the joint space, of length one: [B, E]."""
        return nn.functional.normalize(self.projection(self.model(input_ids=ids_BL).pooler_output), dim=-1)


def encoded(tokenizer: Any, texts: Sequence[str], *, longest: int = CONTEXT) -> list[torch.Tensor]:
    """Return the ids of each text, cut at the context, without padding."""
    return [torch.tensor(ids) for ids in tokenizer(list(texts), truncation=True, max_length=longest)["input_ids"]]


def padded(rows: Sequence[torch.Tensor], padding: int) -> torch.Tensor:
    """Return ids [B, L] with the longest row's L."""
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=padding)


def contrastive(left_BE: torch.Tensor, right_BE: torch.Tensor, same_BB: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the symmetric cross entropy of a batch of pairs, several of whose rights may be the same (Radford et al. 2021,
    arXiv 2103.00020, figure 3; Khosla et al. 2020, arXiv 2004.11362, eq. 2 for several positives)."""
    logits_BB = scale.clamp(max=4.6).exp() * left_BE @ right_BE.T
    wanted_BB = same_BB / same_BB.sum(dim=1, keepdim=True)
    both = nn.functional.cross_entropy(logits_BB, wanted_BB) + nn.functional.cross_entropy(logits_BB.T, wanted_BB.T.contiguous())
    return both / 2


class WordPairs:
    """Pairs of texts with one meaning: a gloss against the words and hypernyms of its synset, in new combinations at every step."""

    def __init__(self, world: World, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._synsets = list(world.synsets.values())
        self._above = [[world.synsets[up].words for up in world.tree.chains.get(one.id, ())[:6]] for one in self._synsets]
        self._gloss = encoded(tokenizer, [one.gloss for one in self._synsets])

    def batch(self, size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return ids of glosses [B, L], ids of words [B, L'], and which of the latter are equal, [B, B]."""
        chance = random.Random(seed)
        numbers = chance.sample(range(len(self._synsets)), min(_POOL * size, len(self._synsets)))
        numbers.sort(key=lambda number: (len(self._gloss[number]), number))  # of like length: less padding
        start = chance.randrange(0, max(1, len(numbers) - size + 1))
        chosen = numbers[start : start + size]
        named = [self._named(number, chance) for number in chosen]
        labels = {text: number for number, text in enumerate(dict.fromkeys(named))}
        label = torch.tensor([labels[text] for text in named])
        padding = self._tokenizer.pad_token_id
        glosses = [self._thinned(self._gloss[number], chance) for number in chosen]
        return (
            padded(glosses, padding),
            padded(encoded(self._tokenizer, named, longest=_LONGEST_NAMES), padding),
            (label[:, None] == label[None, :]).float(),
        )

    def _named(self, number: int, chance: random.Random) -> str:
        """Return words of the synset, or of hypernyms, or both: "hedgehog", "hedgehog: animal", "mammal, animal"."""
        above = [chance.choice(words) for words in chance.sample(self._above[number], min(len(self._above[number]), chance.randint(1, 3)))]
        own = self._synsets[number].words
        words = ", ".join(chance.sample(own, chance.randint(1, min(3, len(own)))))
        form = chance.random()
        if not above or form < 0.25:
            return words
        return ", ".join(above) if form < 0.5 else f"{words}: {', '.join(above)}"

    @staticmethod
    def _thinned(ids: torch.Tensor, chance: random.Random) -> torch.Tensor:
        """Return the ids without some of them, so that no single word decides."""
        keep = [0, *(place for place in range(1, len(ids) - 1) if chance.random() > 0.15), len(ids) - 1]
        return ids[keep]


@torch.no_grad()
def as_the_unet_reads(text_model: Any, tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:
    """Return what a tower's text model says of every token of texts, padded to the context as a pipeline pads them: float16 [B, 40, D]."""
    text_model.eval()
    read = []
    for start in range(0, len(texts), 512):
        ids = tokenizer(list(texts[start : start + 512]), padding="max_length", max_length=CONTEXT, truncation=True)["input_ids"]
        read.append(text_model(input_ids=torch.tensor(ids)).last_hidden_state.half())
    return torch.cat(read)


@torch.no_grad()
def in_joint_space(tower: Tower, tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:
    """Return texts in the joint space: [B, E]. Padding changes nothing, so that texts of like length are read together."""
    tower.eval()
    rows = encoded(tokenizer, texts)
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    joint = torch.empty(len(rows), JOINT)
    for start in range(0, len(rows), 512):
        part = order[start : start + 512]
        joint[part] = tower(padded([rows[row] for row in part], tokenizer.pad_token_id))
    return joint
