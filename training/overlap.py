"""How much texts share: near duplicates and n-gram overlap. Knows text; nothing of preferences."""

from collections.abc import Iterable, Sequence

import rensa

SHINGLE_WORDS = 3
BANDS, ROWS_PER_BAND = 20, 6
"a pair of Jaccard similarity s is looked at with probability 1 - (1 - s^6)^20: 0.998 at 0.8"


def shingles(text: str, n: int) -> set[str]:
    """Its runs of n words, lower-cased; a shorter text is one shingle, an empty one none.

    >>> sorted(shingles("The cat sat  down", 3))
    ['cat sat down', 'the cat sat']
    """
    words = text.lower().split()
    if not words:
        return set()
    return {" ".join(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}


def near_duplicates(texts: Sequence[str], threshold: float) -> list[list[int]]:
    """Clusters of texts linked by a Jaccard similarity of word trigrams of at least `threshold`.

    MinHash with banding (Broder 1997; Indyk and Motwani 1998) proposes pairs, their exact
    similarity decides, so what is reported is true and a few in a thousand may be missed. Indices
    into `texts`, each cluster and their list in rising order. Empty texts are in none.
    """
    sets = [shingles(text, SHINGLE_WORDS) for text in texts]
    matrix = rensa.RMinHashLSH(threshold, BANDS * ROWS_PER_BAND, BANDS)
    hashes = []
    for shingle_set in sets:
        minhash = rensa.RMinHash(BANDS * ROWS_PER_BAND, seed=0)
        minhash.update(sorted(shingle_set))
        hashes.append(minhash)
    matrix.insert_many(hashes)
    parent = list(range(len(texts)))
    for i, minhash in enumerate(hashes):
        for j in matrix.query(minhash):
            first, second = _root(parent, i), _root(parent, j)
            if j < i and first != second and _jaccard(sets[i], sets[j]) >= threshold:
                parent[max(first, second)] = min(first, second)
    clusters: dict[int, list[int]] = {}
    for i in range(len(texts)):
        clusters.setdefault(_root(parent, i), []).append(i)
    return [members for members in clusters.values() if len(members) > 1]


def covered_share(texts: Sequence[str], known: Iterable[str], n: int) -> list[float]:
    """Per text, the share of its words that lie in an n-gram that occurs in `known` too.

    A text of fewer than n words counts as one n-gram. The measure of Tulu 3's decontamination
    (arXiv 2411.15124, section 3.2), which takes n = 8 and calls more than one half a match.
    """
    wanted: set[str] = set().union(*(shingles(text, n) for text in texts)) if texts else set()
    found: set[str] = set()
    for text in known:
        found |= shingles(text, n) & wanted
    return [_covered(text, found, n) for text in texts]


def _covered(text: str, found: set[str], n: int) -> float:
    words = text.lower().split()
    covered = [False] * len(words)
    for i in range(max(1, len(words) - n + 1)):
        if " ".join(words[i : i + n]) in found:
            covered[i : i + n] = [True] * len(words[i : i + n])
    return sum(covered) / len(words) if words else 0.0


def _jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b) if a | b else 0.0


def _root(parent: list[int], i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i
