from .draft import Asked as Asked
from .draft import draft as draft
from .interview import Interview as Interview
from .interview import Question as Question
