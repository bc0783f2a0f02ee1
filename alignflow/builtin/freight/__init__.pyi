from .corpus import company_documents as company_documents
from .corpus import general_documents as general_documents
from .demonstrations import demonstrations as demonstrations
from .judge import judge as judge
from .world import REFUSAL as REFUSAL
from .world import Split as Split
from .world import Wording as Wording
from .world import draw_examples as draw_examples
