"""A small image service on loopback: an SIA 1 table and the files, with ranges, cuts and lies on demand."""

from __future__ import annotations

import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FIELDS = """<FIELD name="title" datatype="char" arraysize="*" ucd="VOX:Image_Title"/>
<FIELD name="url" datatype="char" arraysize="*" ucd="VOX:Image_AccessReference"/>
<FIELD name="format" datatype="char" arraysize="*" ucd="VOX:Image_Format"/>
<FIELD name="ra" datatype="double" ucd="POS_EQ_RA_MAIN"/>
<FIELD name="dec" datatype="double" ucd="POS_EQ_DEC_MAIN"/>
<FIELD name="naxes" datatype="int" ucd="VOX:Image_Naxes"/>
<FIELD name="naxis" datatype="int" arraysize="*" ucd="VOX:Image_Naxis"/>
<FIELD name="scale" datatype="double" arraysize="*" ucd="VOX:Image_Scale"/>
<FIELD name="filter" datatype="char" arraysize="*" ucd="VOX:BandPass_ID"/>
<FIELD name="filesize" datatype="long" ucd="VOX:Image_FileSize"/>
<FIELD name="sha256" datatype="char" arraysize="*"/>"""


class SiaServer:
    """Serves ``files`` {name: (band, bytes)}; ``cut`` breaks each of the next so many transfers half-way."""

    def __init__(self):
        self.files, self.cut, self.requests = {}, 0, []
        self.checksum = lambda content: hashlib.sha256(content).hexdigest()
        self.ranges, self.status, self.table = True, 200, None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.answer(self)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, handler):
        path = urlsplit(handler.path).path
        self.requests.append((path, handler.headers.get("Range")))
        if path == "/sia":
            self._send(handler, 200, self._table(), {"Content-Type": "application/x-votable+xml"})
            return
        _, content = self.files[path.rsplit("/", 1)[-1]]
        if self.status != 200:
            self._send(handler, self.status, b"", {})
            return
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        wanted = re.match(r"bytes=(\d+)-", handler.headers.get("Range") or "")
        same = handler.headers.get("If-Range") in (None, tag)
        if wanted and same and self.ranges:
            start = int(wanted[1])
            headers = {"ETag": tag, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            self._send(handler, 206 if start < len(content) else 416, content[start:], headers)
        else:
            self._send(handler, 200, content, {"ETag": tag})

    def _send(self, handler, status, content, headers):
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        if self.cut and len(content) > 5000 and status in (200, 206) and "ETag" in headers:
            self.cut -= 1
            handler.wfile.write(content[: len(content) // 2])
            handler.close_connection = True
            return
        handler.wfile.write(content)

    def _table(self):
        if self.table is not None:
            return self.table
        rows = "".join(
            "<TR>"
            + "".join(
                f"<TD>{value}</TD>"
                for value in (
                    name, f"{self.url}/files/{name}", "image/fits", 114.78, -50.0, 2, "760 520",
                    "-0.000111 0.000111", band, len(content), self.checksum(content),
                )
            )
            + "</TR>"
            for name, (band, content) in self.files.items()
        )  # fmt: skip
        return f"""<?xml version="1.0"?><VOTABLE version="1.3" xmlns="http://www.ivoa.net/xml/VOTable/v1.3">
<RESOURCE type="results"><INFO name="QUERY_STATUS" value="OK"/><TABLE>{FIELDS}
<DATA><TABLEDATA>{rows}</TABLEDATA></DATA></TABLE></RESOURCE></VOTABLE>""".encode()
