"""The storage of large files on the second port: another origin than the API, as it is on the real Hub."""

import hashlib
from typing import TYPE_CHECKING

from hub.messages import Answer, HubError, Request, content_answer

if TYPE_CHECKING:
    from hub.server import HubServer


def respond(hub: "HubServer", request: Request) -> Answer:
    """Keep or give an object of a repository: /objects/NAMESPACE/NAME/SHA256, or /objects/datasets/NAMESPACE/...

    A token that arrives here has left the Hub, and is refused.
    """
    if "Authorization" in request.headers:
        raise HubError(400, None, "A token was sent to the storage, which is not the Hub")
    _, *page, oid = request.segments
    pages = {repository.page: repository.objects for repository in hub.repositories.values()}
    objects = pages.get("/".join(page))
    if objects is None or (request.method != "PUT" and oid not in objects):
        raise HubError(404, None, f"No object at {request.target}")
    if request.method != "PUT":
        return content_answer(request, objects[oid], {"ETag": f'"{oid}"'})
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise HubError(400, None, f"What arrived is not the content of {oid}")
    objects[oid] = request.body
    return Answer(200)
