import numpy as np
import pytest

from cdcd.data.samples import GENRE_NAMES, GENRES, Sample, genre_one_hot

AUDIO = np.zeros(44100, np.float32)
MOTION = np.zeros((120, 219), np.float32)


def test_genre_indices_are_those_of_the_published_label_files():
    assert GENRES == ("BR", "PO", "LO", "MH", "LH", "HO", "WA", "KR", "JS", "JB")
    assert tuple(GENRE_NAMES) == GENRES
    assert genre_one_hot(5).tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("key", ["a.b", "a/b", "", "ä"])
def test_keys_must_survive_as_tar_member_names(key):
    with pytest.raises(ValueError, match="key must be"):
        Sample(key, "train", AUDIO, MOTION, None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split": "dev"}, "split must be"),
        ({"audio": AUDIO[None]}, "audio must be"),
        ({"audio": AUDIO.astype("f8")}, "audio must be"),
        ({"motion": MOTION[:, :72]}, "motion must be"),
        ({"motion": MOTION.astype("f8")}, "motion must be"),
    ],
)
def test_wrong_arrays_are_refused(changes, words):
    fields = {"key": "a", "split": "train", "audio": AUDIO, "motion": MOTION, "video": None}
    with pytest.raises(ValueError, match=words):
        Sample(**(fields | changes))
