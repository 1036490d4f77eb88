#!/bin/bash
# kcat, which is librdkafka: called with an address and the name of a scenario, as the other programs here. What a topic
# holds is compared with what was sent to it. kcat creates no topics: all are created because they are used.
set -euo pipefail
address=$1 scenario=$2
folder=$(mktemp -d)
started=()
trap 'for one in "${started[@]}"; do kill -9 "$one" 2>/dev/null || true; done; rm -rf "$folder"' EXIT

unique() { echo "$1-$(head -c 4 /dev/urandom | od -An -tx1 | tr -d ' ')"; }
fail() { echo "$*" | cut -c1-300; exit 1; }
same() { [[ $1 == "$2" ]] || fail "found $1, expected $2"; }
same_files() { cmp "$1" "$2" || fail "$1 has $(wc -l <"$1") lines, expected $(wc -l <"$2"): $(diff "$1" "$2" | head -n 5)"; }

# The limit is longer than that of any wait below, so that a fault is an error and does not hang.
client() { timeout 150 kcat -b "$address" "$@"; }
# send TOPIC OPTIONS: each line of the input is a record.
send() { client -P -t "$1" "${@:2}"; }
# read_all TOPIC OPTIONS: the topic from its beginning to its end.
read_all() { client -C -t "$1" -o beginning -e -q -X check.crcs=true "${@:2}"; }
# read_group GROUP COUNT TOPICS OPTIONS
read_group() { client -G "$1" -c "$2" -q -X auto.offset.reset=earliest -X session.timeout.ms=6000 "${@:3}"; }

# until_true SECONDS COMMAND
until_true() {
  local limit=$((SECONDS + $1))
  until "${@:2}"; do
    ((SECONDS < limit)) || fail "not within $1 s: ${*:2}"
    sleep 0.1
  done
}

produce_consume() {
  local topic; topic=$(unique t)
  seq 0 999 >"$folder/sent"
  send "$topic" <"$folder/sent"
  read_all "$topic" >"$folder/read"
  same_files "$folder/read" "$folder/sent"
  read_group "$(unique g)" 1000 "$topic" >"$folder/read"
  same_files "$folder/read" "$folder/sent"
  # From the end, from an offset, and as JSON.
  same "$(client -C -t "$topic" -p 0 -o -2 -e -q | xargs)" "998 999"
  same "$(client -C -t "$topic" -p 0 -o 500 -c 1 -q -f '%t %p %o %s')" "$topic 0 500 500"
  same "$(client -C -t "$topic" -p 0 -o 7 -c 1 -q -J | grep -c '"offset":7,.*"payload":"7"')" 1
}

codecs() {
  local codec topic
  for codec in none gzip snappy lz4 zstd; do
    topic=$(unique "$codec")
    for n in {0..199}; do printf '%s %s %0200d\n' "$codec" "$n" 0; done >"$folder/sent"
    send "$topic" -z "$codec" <"$folder/sent"
    read_all "$topic" >"$folder/read"
    same_files "$folder/read" "$folder/sent"
  done
}

nulls_headers() {
  local topic; topic=$(unique t)
  printf ':\n' | send "$topic" -K : -Z -H a=1 -H a -H b=
  printf 'k:\nk:v\n' | send "$topic" -K :
  printf 'k:\n' | send "$topic" -K : -Z
  # The lengths of the key and of the value: -1 is null.
  read_all "$topic" -f '%K %S %h\n' >"$folder/read"
  printf '%s\n' '-1 -1 a=1,a=NULL,b=' '1 0 ' '1 1 ' '1 -1 ' >"$folder/sent"
  same_files "$folder/read" "$folder/sent"
}

# member NAME GROUP STRATEGY TOPICS: runs a member of a group, which writes each change of its partitions to a file.
member() {
  kcat -b "$address" -G "$2" -X "partition.assignment.strategy=$3" -X session.timeout.ms=6000 -X heartbeat.interval.ms=500 \
    "${@:4}" >/dev/null 2>"$folder/$1" &
  started+=($!)
}

# has NAME COUNT: whether a member has as many partitions.
has() {
  local held
  held=$(awk '/rebalanced/ { gained = /(assigned|incremental assignment)/; sub(/.*(assigned|revoked|protocol\)): /, "")
      n = split($0, parts, ", "); for (i = 1; i <= n; i++) if (gained) of[parts[i]] = 1; else delete of[parts[i]] }
    END { for (part in of) count++; print count + 0 }' "$folder/$1")
  ((held == $2))
}
share() { has "$1" 2 && has "$2" 2; }

group() {
  local strategy name topics
  for strategy in roundrobin cooperative-sticky; do
    # A topic that is created because it is used has one partition.
    topics=()
    for n in 0 1 2 3; do
      topics+=("$(unique "t$n")")
      echo a | send "${topics[-1]}"
    done
    name=$(unique g)
    started=()
    member "first-$strategy" "$name" "$strategy" "${topics[@]}"
    until_true 60 has "first-$strategy" 4
    member "second-$strategy" "$name" "$strategy" "${topics[@]}"
    until_true 60 share "first-$strategy" "second-$strategy"
    kill "${started[0]}"
    until_true 60 has "second-$strategy" 4
    kill "${started[1]}"
    wait "${started[@]}" || true
  done
}

commit_resume() {
  local topic name; topic=$(unique t) name=$(unique g)
  seq 0 9 | send "$topic"
  same "$(read_group "$name" 4 "$topic" | xargs)" "0 1 2 3"
  same "$(read_group "$name" 6 "$topic" -f '%o\n' | xargs)" "4 5 6 7 8 9"
}

seek_time() {
  local topic time; topic=$(unique t)
  seq 0 3 | send "$topic"
  sleep 0.1
  time=$(date +%s%3N)
  sleep 0.1
  seq 4 9 | send "$topic"
  same "$(client -Q -t "$topic:0:$time")" "$topic [0] offset 4"
  same "$(client -Q -t "$topic:0:-2")" "$topic [0] offset 0"
  same "$(client -Q -t "$topic:0:-1")" "$topic [0] offset 10"
  same "$(client -C -t "$topic" -o "s@$time" -e -q | xargs)" "4 5 6 7 8 9"
  same "$(client -C -t "$topic" -p 0 -o beginning -o "e@$time" -e -q | xargs)" "0 1 2 3"
}

# begin TOPIC ID WORD: a transaction that is open as long as descriptor 3 is.
begin() {
  kcat -b "$address" -P -t "$1" -X "transactional.id=$2" -X linger.ms=0 <"$folder/input" 2>"$folder/$3" &
  started+=($!)
  exec 3>"$folder/input"
  # kcat sends what it has read when it has a block of it.
  for n in {0..99}; do printf '%s %0200d\n' "$3" "$n"; done >&3
}

transactions() {
  local topic id; topic=$(unique t) id=$(unique tx)
  mkfifo "$folder/input"
  seq 0 9 | send "$topic" -X "transactional.id=$id"
  # One that is stopped before its input ends aborts.
  begin "$topic" "$id" aborted
  until_true 60 holds "$topic" aborted
  kill "${started[-1]}"
  exec 3>&-
  wait "${started[-1]}" || true
  seq 20 29 | send "$topic" -X "transactional.id=$id"
  # A producer with the same id fences the older one.
  begin "$topic" "$id" fenced
  until_true 60 holds "$topic" fenced
  echo newer | send "$topic" -X "transactional.id=$id" 3>&-
  exec 3>&-
  if wait "${started[-1]}"; then fail "the old producer is not fenced"; fi
  grep -qi fenced "$folder/fenced" || fail "the old producer failed otherwise: $(tail -n 3 "$folder/fenced")"
  (seq 0 9; seq 20 29; echo newer) >"$folder/sent"
  read_all "$topic" -X isolation.level=read_committed >"$folder/read"
  same_files "$folder/read" "$folder/sent"
}

# holds TOPIC WORD: whether a topic has a record with the word, committed or not.
holds() { read_all "$1" -X isolation.level=read_uncommitted >"$folder/all" && grep -q "$2" "$folder/all"; }

large() {
  local topic; topic=$(unique t)
  head -c 900000 /dev/zero | tr '\0' x >"$folder/value"
  # Each file is a record.
  client -P -t "$topic" -X message.max.bytes=1000000 $(for _ in {1..20}; do echo "$folder/value"; done) </dev/null
  same "$(read_all "$topic" -X fetch.message.max.bytes=100000 -f '%S\n' | sort | uniq -c | xargs)" "20 900000"
  client -C -t "$topic" -p 0 -o 19 -c 1 -q -f %s | cmp - "$folder/value"
}

many_topics() {
  local prefix; prefix=$(unique many)
  for n in {0..99}; do
    echo "$n" | send "$prefix-$n"
  done
  same "$(client -L -J | grep -o "\"topic\":\"$prefix-[0-9]*\"" | wc -l)" 100
  seq 0 99 >"$folder/sent"
  read_group "$(unique g)" 100 "^$prefix" | sort -n >"$folder/read"
  same_files "$folder/read" "$folder/sent"
}

# The server is killed again and again meanwhile.
kill_server() {
  local topic; topic=$(unique t)
  seq 0 3999 >"$folder/sent"
  for n in {0..99}; do
    seq $((n * 40)) $((n * 40 + 39))
    sleep 0.1
  done | client -P -E -m 60 -t "$topic" -X enable.idempotence=true -X message.timeout.ms=120000 -X linger.ms=5
  client -G "$(unique g)" -E -c 4000 -q -m 60 -X auto.offset.reset=earliest -X session.timeout.ms=6000 "$topic" >"$folder/read"
  same_files "$folder/read" "$folder/sent"
}

case $scenario in
  produce-consume) produce_consume ;;
  codecs) codecs ;;
  nulls-headers) nulls_headers ;;
  group) group ;;
  commit-resume) commit_resume ;;
  seek-time) seek_time ;;
  transactions) transactions ;;
  large) large ;;
  many-topics) many_topics ;;
  kill | disconnects) kill_server ;;
  *) exit 77 ;;
esac
