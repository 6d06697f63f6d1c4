"""Ask the model smollm2 for text, and print it while it comes. Needs nothing but Python.

python client.py 'The capital of France is' --max-tokens 32
"""

import argparse
import json
import sys
import urllib.error
import urllib.request


def main():
    """Send one request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--max-tokens", type=int)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--stop", action="append")
    given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    url, prompt = given.pop("url"), given.pop("prompt")
    body = json.dumps({"text_input": prompt, "stream": True, **given}).encode()
    request = urllib.request.Request(f"{url}/v2/models/smollm2/generate_stream", body)
    try:
        with urllib.request.urlopen(request) as answer:
            for line in answer:
                if line.startswith(b"data:"):
                    part = json.loads(line[5:])
                    if "error" in part:
                        sys.exit(part["error"])
                    sys.stdout.write(part["text_output"])
                    sys.stdout.flush()
    except urllib.error.HTTPError as e:
        sys.exit(e.read().decode(errors="replace"))
    except urllib.error.URLError as e:
        sys.exit(f"{url} does not answer: {e.reason}")
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
