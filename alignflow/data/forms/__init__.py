"""The forms that rows have when they come from people's tools, and how each becomes a canonical row.

    row -> its form, told by its columns -> canonical rows: messages; prompt, completion; prompt,
    chosen, rejected; prompt, responses, scores; prompt, completion, label; prompt, target; text

Files and ledger recognise a row here and nowhere else. docs/data.md is the list for users.
"""

from alignflow.data.forms.recognising import form_names as form_names
from alignflow.data.forms.recognising import recognised as recognised
