"""lean_memory(): fewer bytes kept, the same gradients, and PyTorch's checks."""

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import normkit.torch as nt  # noqa: E402


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def chain(fused, depth=6, width=8):
    layers = []
    for _ in range(depth):
        layers.append(torch.nn.Conv2d(width, width, 3, padding=1, bias=False))
        norm = nt.BatchNorm2d(width) if fused else torch.nn.BatchNorm2d(width)
        layers += [nt.NormAct(norm, "relu")] if fused else [norm, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers)


def bytes_kept(run):
    """What PyTorch's allocator has handed out in a forward and not got back."""
    with torch.profiler.profile(profile_memory=True) as profile:
        loss = run()
    return sum(event.self_cpu_memory_usage for event in profile.key_averages()), loss


@pytest.mark.parametrize("depth", [4, 8])
def test_a_lean_chain_keeps_half_of_the_bytes(depth, monkeypatch):
    import normkit.torch.host

    monkeypatch.setattr(normkit.torch.host, "_POOLED", 1 << 60)  # the profiler sees no pool
    lean, plain = chain(True, depth), chain(False, depth)
    plain.load_state_dict(dict(zip(plain.state_dict(), lean.state_dict().values(), strict=True)))
    x = torch.randn(4, 8, 24, 24)

    def run_lean():
        with nt.lean_memory():
            return lean(x).mean()

    run_lean().backward()  # whatever is made once
    lean.zero_grad()
    ours, our_loss = bytes_kept(run_lean)
    theirs, their_loss = bytes_kept(lambda: plain(x).mean())
    assert theirs > 2 * depth * x.nbytes
    assert ours <= 0.55 * theirs
    our_loss.backward()
    their_loss.backward()
    for a, b in zip(lean.parameters(), plain.parameters(), strict=True):
        assert (a.grad - b.grad).abs().max() <= 1e-6 * max(1.0, float(b.grad.abs().max()))


def test_lean_memory_notices_changes_in_place():
    block, conv = nt.NormAct(nt.BatchNorm2d(3)), torch.nn.Conv2d(3, 3, 3)
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    with nt.lean_memory():
        y = block(x)
        y.mul_(2)  # no longer what the block computes: kept as it is
        out = conv(y)
    out.square().sum().backward()
    got, x.grad = x.grad, None
    conv(block(x) * 2).square().sum().backward()
    torch.testing.assert_close(got, x.grad)


def test_what_changes_in_place_is_noticed_or_does_not_matter():
    block, conv = nt.NormAct(nt.BatchNorm2d(3)), torch.nn.Conv2d(3, 3, 3)
    linear = torch.nn.Linear(3, 2)
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    with nt.lean_memory():
        h = x * 1
        out = conv(block(h))
        h.mul_(0)  # what the block's output would be computed from
        plain = linear(torch.ones(4, 3, requires_grad=True))
        powers = x.exp()
        powers.mul_(3)  # which exp keeps for its own backward
    with pytest.raises(RuntimeError, match="inplace"):
        out.sum().backward()
    with torch.no_grad():
        linear.weight.mul_(5)
    with pytest.raises(RuntimeError, match="inplace"):
        plain.sum().backward()
    with pytest.raises(RuntimeError, match="inplace"):
        powers.sum().backward()


@pytest.mark.parametrize("lean", [False, True])
def test_a_consumer_of_a_detached_output_has_its_own_gradient(lean):
    """What GANs do: the generator's graph goes, its norms move on, the discriminator's stays."""
    import contextlib

    block, conv = nt.NormAct(nt.BatchNorm2d(3)), torch.nn.Conv2d(3, 3, 3)
    x = torch.randn(2, 3, 6, 6)
    want = torch.autograd.grad(conv(block(x).detach()).square().sum(), conv.weight)[0]
    with nt.lean_memory() if lean else contextlib.nullcontext():
        y = block(x)
        score = conv(y.detach())
    y.sum().backward()
    with torch.no_grad():
        block.norm.weight.add_(1)
        block.norm.bias.add_(1)
    torch.testing.assert_close(torch.autograd.grad(score.square().sum(), conv.weight)[0], want)


def test_compiled_within():
    net = torch.nn.Sequential(nt.NormAct(nt.BatchNorm2d(3)), torch.nn.Conv2d(3, 3, 3))
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    with nt.lean_memory():
        y = compiled(x)
    got = torch.autograd.grad(y.sum(), x)[0]
    torch.testing.assert_close(got, torch.autograd.grad(net(x).sum(), x)[0])
