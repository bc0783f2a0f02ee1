from .children import Service as Service
from .children import demand_free as demand_free
from .children import ended_together as ended_together
from .deploy import WORK_POOL as WORK_POOL
from .deploy import absolute_home as absolute_home
from .deploy import check_recipe as check_recipe
from .doctor import examine as examine
from .prefect_server import start_temporary_server as start_temporary_server
