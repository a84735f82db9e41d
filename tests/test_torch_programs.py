"""fastxent.torch in whole programs: training, threads, forks, workers."""

import sys
import threading

import pytest

torch = pytest.importorskip("torch")
import isolated  # noqa: E402
from torch.nn import functional as theirs  # noqa: E402

import fastxent  # noqa: E402
import fastxent.torch as ours  # noqa: E402
from fastxent.torch import _tensors  # noqa: E402

BATCH, TIME, WORDS, CLASSES = 8, 7, 11, 5


@pytest.fixture
def one_thread():
    """Models so small are slowed down by torch's threads, the more so where others are at work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Tagger(torch.nn.Module):
    """A class for each step of a sequence, or for the whole of it."""

    def __init__(self, many_to_one):
        super().__init__()
        self.embedding = torch.nn.Embedding(WORDS, 6)
        self.recurrent = torch.nn.GRU(6, 8, batch_first=True)
        self.out = torch.nn.Linear(8, CLASSES)
        self.many_to_one = many_to_one

    def forward(self, words, lengths):
        states, _ = self.recurrent(self.embedding(words))
        if self.many_to_one:
            return self.out(states[torch.arange(len(words)), lengths - 1])
        return self.out(states).transpose(1, 2)


def train(loss, many_to_one, steps=25):
    """The losses of some steps of training, always from the same start on the same data."""
    torch.manual_seed(3)
    model = Tagger(many_to_one).double()
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    losses = []
    for _ in range(steps):
        words = torch.randint(0, WORDS, (BATCH, TIME))
        lengths = torch.randint(1, TIME + 1, (BATCH,))
        tags = (words + words.roll(1, 1)) % CLASSES
        targets = words[torch.arange(BATCH), lengths - 1] % CLASSES if many_to_one else tags
        optimizer.zero_grad()
        value = loss(model(words, lengths), targets, lengths)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(value.detach())
    found = torch.stack(losses)
    assert found[-5:].mean() < found[:5].mean()
    return found


def padded(targets, lengths):
    return targets.masked_fill(torch.arange(TIME) >= lengths[:, None], -100)


def weighted(x, t, n):
    losses = theirs.cross_entropy(x, t, reduction="none")
    counted = torch.arange(TIME) < n[:, None]
    return (losses * counted).sum() / counted.sum()


TAGGERS = {
    "plain": (lambda x, t, n: ours.cross_entropy(x, t), lambda x, t, n: theirs.cross_entropy(x, t)),
    "padded": (
        lambda x, t, n: ours.cross_entropy(x, padded(t, n)),
        lambda x, t, n: theirs.cross_entropy(x, padded(t, n)),
    ),
    "lengths": (lambda x, t, n: ours.cross_entropy(x, t, lengths=n), weighted),
    "mask": (lambda x, t, n: ours.cross_entropy(x, t, mask=torch.arange(TIME) < n[:, None]), weighted),
    "two steps": (
        lambda x, t, n: ours.nll_loss(ours.log_softmax(x, 1), t),
        lambda x, t, n: theirs.nll_loss(theirs.log_softmax(x, 1), t),
    ),
    "smooth, in place": (
        lambda x, t, n: ours.cross_entropy(x * 1.0, t, label_smoothing=0.1, inplace_backward=True),
        lambda x, t, n: theirs.cross_entropy(x, t, label_smoothing=0.1),
    ),
}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("case", TAGGERS)
def test_a_tagger_trains_alike(case):
    mine, right = TAGGERS[case]
    torch.testing.assert_close(train(mine, False), train(right, False), rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("probabilities", [False, True])
def test_a_classifier_trains_alike(probabilities):
    def target(t):
        return torch.nn.functional.one_hot(t, CLASSES).double() if probabilities else t

    found = train(lambda x, t, n: ours.cross_entropy(x, target(t)), True)
    right = train(lambda x, t, n: theirs.cross_entropy(x, target(t)), True)
    torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)
    with ours.patch():
        patched = train(lambda x, t, n: torch.nn.CrossEntropyLoss()(x, target(t)), True)
    assert torch.equal(patched, found)


def test_two_threads_at_once_and_autograd_in_another():
    torch.manual_seed(0)
    x, t = torch.randn(300, 200), torch.randint(0, 200, (300,))
    leaf = x.clone().requires_grad_()
    right = torch.autograd.grad(ours.cross_entropy(leaf, t), leaf)[0]
    found, failed = [], []

    def work():
        try:
            for _ in range(20):
                mine = x.clone().requires_grad_()
                ours.cross_entropy(mine, t).backward()
                found.append(mine.grad)
        except BaseException as error:
            failed.append(error)

    loss = ours.cross_entropy(leaf, t)
    threads = [threading.Thread(target=work) for _ in range(2)] + [threading.Thread(target=loss.backward)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(found) == 40
    assert all(torch.equal(grad, right) for grad in (*found, leaf.grad))


def test_threads_of_torch_count():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert (_tensors.threads() or fastxent.get_num_threads()) == 1
    finally:
        torch.set_num_threads(before)


IN_TORCH = """
import torch, fastxent.torch
torch.manual_seed(0)
x, t = torch.randn(3000, 1000), torch.randint(0, 1000, (3000,))
def both():
    leaf = x.clone().requires_grad_()
    fastxent.torch.cross_entropy(leaf, t).backward()
    return leaf.grad
expected = both()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs linux")
def test_a_fork_after_use():
    isolated.run(f"""
{IN_TORCH}
torch.set_num_threads(1)  # torch's own pool does not survive a fork; ours does
process = os.fork()
if not process:
    os._exit(0 if torch.equal(both(), expected) else 3)
assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
assert torch.equal(both(), expected)
""")


@pytest.mark.skipif(sys.platform != "linux", reason="needs linux")
def test_workers_of_a_data_loader():
    isolated.run(f"""
{IN_TORCH}
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of forks with threads
warnings.filterwarnings("ignore", message="This DataLoader will create")  # on a single processor
class Losses(torch.utils.data.Dataset):
    def __len__(self):
        return 6
    def __getitem__(self, i):
        rows = slice(500 * i, 500 * i + 500)
        return fastxent.torch.cross_entropy(x[rows], t[rows], reduction="none")
found = torch.cat(list(torch.utils.data.DataLoader(Losses(), batch_size=None, num_workers=2)))
assert torch.equal(found, fastxent.torch.cross_entropy(x, t, reduction="none"))
""")


def test_importing_fastxent_does_not_import_torch():
    isolated.run("assert 'torch' not in sys.modules")
