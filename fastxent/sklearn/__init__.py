"""fastxent for scikit-learn, XGBoost and LightGBM: log loss of decision values, and gradients for boosting.

The log loss of scikit-learn takes probabilities and clips them, and so cannot tell a confident mistake from a hopeless
one. Here it is computed from the decision values. XGBoost and LightGBM are not imported: they call the objectives.
"""

from ._boosting import lightgbm_objective, xgboost_objective
from ._gradients import multinomial_gradient_hessian
from ._metrics import log_loss, neg_log_loss_scorer

__all__ = [
    "lightgbm_objective",
    "log_loss",
    "multinomial_gradient_hessian",
    "neg_log_loss_scorer",
    "xgboost_objective",
]
