"""Law of the health check: only an answer with 200 is health."""

import http.server
import threading

from infra.is_healthy import is_healthy


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(int(self.path[1:]))
        self.end_headers()

    def log_message(self, *words: object) -> None: ...


def test_only_a_server_that_answers_with_200_is_healthy() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert is_healthy(f"{url}/200")
        assert not any(is_healthy(f"{url}/{code}") for code in (401, 404, 503))
        server.shutdown()
    assert not is_healthy(url)
