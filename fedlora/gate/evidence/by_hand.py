"""What stands in a pack's README: how to check the pack with fedlora, and without."""

README = r"""# A pack of evidence

What a site of a federated fine-tuning let in and out, as its gate logged it: digests and sizes of
the exact bytes, decisions with their reasons, receipts. It holds no data and no values.

| file | what it is |
|---|---|
| `entries.jsonl` | the log, an entry a line; each hash is over the hash before it and the entry |
| `head.json` | how many entries there are and the hash of the last, signed by the gate |
| `evidence.html` | the entries to be read |
| `texts/` | the recipes and policies that entries name, each named by its SHA-256 |
| `keys/` | public keys of the gate and of the aggregator, Ed25519, base64 |

## With fedlora

    fedlora client evidence verify PACK --gate-key GATE.pub --aggregator-key AGGREGATOR.pub

Take both keys from those whose keys they are, not from this pack: whoever made it up could have put
in others. `--since OLDER-PACK` shows that the log has only grown since.

## By hand

In the unpacked folder, with bash, coreutils and OpenSSL 3:

```bash
# 1. The chain: each hash is SHA-256 over the hash before it and the entry.
before=$(printf '0%.0s' {1..64}) number=0
while IFS= read -r line; do
  number=$((number + 1)) hash=${line#*'"hash":"'} hash=${hash%%'"'*}
  content=${line#*'"content":'} content=${content%\}}
  [ "$(printf '%s%s' "$before" "$content" | sha256sum | cut -c 1-64)" = "$hash" ] \
    || { echo "entry $number is broken"; exit 1; }
  before=$hash
done < entries.jsonl
echo "$number entries, the last has the hash $before"

# 2. The head: the same number and hash, signed by the gate.
grep -F "\"count\":$number,\"hash\":\"$before\"" head.json
check=$(mktemp -d)
{ printf '\060\052\060\005\006\003\053\145\160\003\041\000'; base64 -d keys/gate.pub; } \
  > "$check/key"
sed 's/"signature":"[^"]*",//; s/"time"/"statement":"head","time"/' head.json \
  | tr -d '\n' > "$check/message"
sed 's/.*"signature":"\([^"]*\)".*/\1/' head.json | base64 -d > "$check/signature"
openssl pkeyutl -verify -pubin -keyform DER -inkey "$check/key" -rawin \
  -in "$check/message" -sigfile "$check/signature"

# 3. The other files: the last entry names them all with their digests.
tail -n 1 entries.jsonl | sed 's/.*"files":{\([^}]*\)}.*/\1/' | tr ',' '\n' \
  | sed 's/"\([^"]*\)":"\([^"]*\)"/\2  \1/' | sha256sum --check --quiet \
  && echo "the files are as exported"
```

A receipt is an entry of the kind `receipted`. Its signature is the aggregator's, over
`{"count":…,"hash":"…","site":"…","statement":"receipt"}`: its own count and hash, the site of
`head.json`. It proves that the log had that entry when the aggregator saw it.

## What it does not prove

That noise was added to what left; that nothing left by another way than the gate; what float bits,
timing, refusals and taking part may tell. Entries that no receipt and no earlier pack covers could
have been rewritten before this pack by whoever holds the gate's key and its disk.
"""
