# The public names. At run time they are imported on first use: riemannian_ode.lazy_names.

from toy_landscapes.bigram import BigramModel as BigramModel
from toy_landscapes.confined_quadratic import ConfinedQuadratic as ConfinedQuadratic
from toy_landscapes.confined_quadratic import CriticalPoints as CriticalPoints
from toy_landscapes.finite_sum import FiniteSum as FiniteSum
from toy_landscapes.kronecker_quadratic import KroneckerQuadratic as KroneckerQuadratic
from toy_landscapes.kronecker_quadratic import LinearRegression as LinearRegression
from toy_landscapes.landscape import Landscape as Landscape
from toy_landscapes.layout import Block as Block
from toy_landscapes.layout import Layout as Layout
from toy_landscapes.matrix_factorization import MatrixFactorization as MatrixFactorization
from toy_landscapes.product_valley import ProductValley as ProductValley
from toy_landscapes.quadratic import Quadratic as Quadratic
from toy_landscapes.quadratic import indefinite_spectrum as indefinite_spectrum
from toy_landscapes.quadratic import power_law_spectrum as power_law_spectrum
from toy_landscapes.quadratic import spiked_spectrum as spiked_spectrum
from toy_landscapes.river import river_point as river_point
from toy_landscapes.river_valley import RiverError as RiverError
from toy_landscapes.river_valley import RiverValley as RiverValley
from toy_landscapes.stochastic_gradient import GaussianNoise as GaussianNoise
from toy_landscapes.stochastic_gradient import MiniBatches as MiniBatches
from toy_landscapes.stochastic_gradient import StochasticGradient as StochasticGradient
from toy_landscapes.straight_valley import StraightValley as StraightValley
from toy_landscapes.torch_landscape import TorchLandscape as TorchLandscape
from toy_landscapes.transformer import TinyTransformer as TinyTransformer
from toy_landscapes.two_layer_network import TwoLayerNetwork as TwoLayerNetwork
