from .functional import cross_entropy, log_softmax, logsumexp, nll_loss, softmax
