"""Part of scripts that tests run: a random network whose outputs rounding hardly changes, and that finds somebody."""


def settle(rounds: int) -> str:
    """Lines that let the normalisation of ``net`` follow ``batch`` in so many rounds, and define ``spread`` for what comes next."""
    return HEAD.replace("ROUNDS", str(rounds))


HEAD = """
for layer in net.modules():
    if isinstance(layer, torch.nn.BatchNorm2d):
        layer.weight.data.fill_(0.4)  # nearly linear: a random network at full gain is chaotic, rounding changes all
        layer.momentum = 0.5
net.train()
with torch.no_grad():
    for _ in range(ROUNDS):
        net(batch)
net.eval()


def spread(convs, first, last, std, mean):  # outputs of a random network hardly differ from cell to cell: make them
    values = []
    hooks = [conv.register_forward_hook(lambda _, __, out: values.append(out[:, first:last])) for conv in convs]
    net(batch)
    for hook, conv, out in zip(hooks, convs, values):
        hook.remove()
        factor = std / out.std((0, 2, 3))
        conv.weight[first:last] *= factor[:, None, None, None]
        conv.bias[first:last] = (conv.bias[first:last] - out.mean((0, 2, 3))) * factor + mean
"""
