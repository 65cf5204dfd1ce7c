import pytest
import torch

from pipeline.data.collate import collate
from pipeline.data.sample import IGNORED, Sample

SAMPLES = [Sample([5, 6, 7], [IGNORED, 6, 7]), Sample([8], [8])]


def test_padding_is_on_the_right_and_not_supervised():
    input_ids_BT, labels_BT = collate(SAMPLES, pad_token_id=0)
    assert input_ids_BT.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert labels_BT.tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]
    assert input_ids_BT.dtype == labels_BT.dtype == torch.int64


def test_a_pad_that_is_also_the_end_token_stays_supervised_where_it_ends_a_sample():
    _, labels_BT = collate([Sample([5, 2], [IGNORED, 2]), SAMPLES[0]], pad_token_id=2)
    assert labels_BT[0].tolist() == [IGNORED, 2, IGNORED]


def test_blank_rows_fill_up_to_the_agreed_number():
    input_ids_BT, labels_BT = collate(SAMPLES, pad_token_id=9, num_rows=4)
    assert input_ids_BT.shape == labels_BT.shape == (4, 3)
    assert (input_ids_BT[2:] == 9).all() and (labels_BT[2:] == IGNORED).all()
    with pytest.raises(AssertionError, match="2 samples do not fit 1 rows"):
        collate(SAMPLES, pad_token_id=0, num_rows=1)


def test_no_sample_gives_blank_rows_of_the_smallest_length():
    input_ids_BT, labels_BT = collate([], pad_token_id=9, num_rows=3)
    assert (
        input_ids_BT.tolist() == [[9, 9]] * 3 and (labels_BT == IGNORED).all() and labels_BT.shape == (3, 2)
    )


def test_tensors_are_put_on_the_device():
    input_ids_BT, labels_BT = collate(SAMPLES, pad_token_id=0, device=torch.device("meta"))
    assert input_ids_BT.device.type == labels_BT.device.type == "meta"
