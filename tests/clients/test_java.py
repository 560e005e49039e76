"""The JDK's own HTTP client with its default settings, which offers to go over to HTTP/2 with every first request."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.api.live_server import LiveServer

pytestmark = pytest.mark.slow

SOURCE = """\
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

public class Talk {
    public static void main(String[] args) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        for (int i = 0; i < 3; i++) {
            String body = "{\\"prompt\\": \\"hello " + i + "\\", \\"max_tokens\\": 7}";
            HttpRequest request = HttpRequest.newBuilder(URI.create(args[0] + "/v1/completions"))
                .header("Content-Type", "application/json")
                .POST(HttpRequest.BodyPublishers.ofString(body))
                .build();
            HttpResponse<String> answer = client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(answer.statusCode() + " " + answer.body().contains("hello " + i));
        }
    }
}
"""


def test_the_default_client_of_java_is_answered(server: LiveServer, tmp_path: Path) -> None:
    java = shutil.which("java")
    if java is None:
        pytest.skip("the JDK's client needs java, which this machine does not have")
    (tmp_path / "Talk.java").write_text(SOURCE)
    done = subprocess.run([java, "Talk.java", server.url], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    if "compiler" in done.stderr:
        pytest.skip("the JDK's client needs a JDK, and this machine has a runtime only")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["200 true"] * 3
