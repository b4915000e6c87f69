"""Stage `follow_champion`: which registered version has the alias `champion` now. DVC runs it every time.

    python -m flows.follow_champion

Asks the MLflow registry. Leaves artifacts/champion.json, which decides whether the champion has to be evaluated anew. A move of
the alias in MLflow's UI counts like `make promote`, and is entered in the history here (docs/promotion.md).
"""

import os
from typing import Any

from components.artifacts import CHAMPION, write_json
from components.params import RegistrationParams
from flows.stage_runner import main


def follow_champion(*, registration: RegistrationParams) -> dict[str, Any]:
    from components.champion import find_champion

    champion = find_champion(registration.model_name)
    write_json(CHAMPION, {"champion": champion})
    return {"champion": champion and champion["uri"]}


if __name__ == "__main__":
    os.environ["BALLAST_WARM_START"] = "0"  # it ends sooner than a warm process would have begun
    main(follow_champion)
