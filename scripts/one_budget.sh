# Sourced by the measuring scripts: results in one folder are of one budget, as what is there is not made again.

one_budget() { # FOLDER BUDGET: ends the script where the folder's results are of another
    mkdir -p "$1"
    [ -f "$1/budget" ] || echo "$2" > "$1/budget"
    [ "$(< "$1/budget")" = "$2" ] || {
        echo "$1 holds results of $(< "$1/budget"), not of $2; name another folder" >&2 && exit 2
    }
}
