# The public names. At run time they are imported on first use: riemannian_ode.lazy_names.

from lite.adamw_lite import AdamWLITE as AdamWLITE
from lite.execution.finiteness import NonFiniteError as NonFiniteError
from lite.execution.finiteness import check_finite_gradients as check_finite_gradients
from lite.lion_lite import Lion as Lion
from lite.lion_lite import LionLITE as LionLITE
from lite.muon_lite import Muon as Muon
from lite.muon_lite import MuonLITE as MuonLITE
from lite.normuon_lite import NorMuon as NorMuon
from lite.normuon_lite import NorMuonLITE as NorMuonLITE
from lite.optimizer import LITEOptimizer as LITEOptimizer
from lite.parameters.grouping import param_groups as param_groups
from lite.parameters.grouping import print_groups as print_groups
from lite.parameters.matrix_view import matrix_views as matrix_views
from lite.qk_clip import QKClip as QKClip
from lite.schedules import LITESchedule as LITESchedule
from lite.schedules import learning_rate_factor as learning_rate_factor
from lite.setting_schedule import SettingSchedule as SettingSchedule
from lite.shampoo_lite import Shampoo as Shampoo
from lite.shampoo_lite import ShampooLITE as ShampooLITE
from lite.soap_lite import SOAP as SOAP
from lite.soap_lite import SOAPLITE as SOAPLITE
