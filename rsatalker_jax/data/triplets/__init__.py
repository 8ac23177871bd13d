"""The speech-mesh-video triplets of the paper (Sec. 4.1): their manifest, and the filmed conversations that it names."""

from rsatalker_jax.data.triplets.filmed import FilmedConversation, Films, label_clips, load_films
from rsatalker_jax.data.triplets.manifest import Triplet, load_triplets, merge_relations

__all__ = ["FilmedConversation", "Films", "Triplet", "label_clips", "load_films", "load_triplets", "merge_relations"]
