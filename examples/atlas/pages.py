"""The pages, as plain functions from data to HTML. They know nothing of caching, nor of who is looking.

What is the visitor's own stands in windows, which are placed as any other value is.
"""

from collections.abc import Iterable, Mapping

from examples.atlas.catalogue import Country, Summary
from examples.atlas.data import PAGE_SIZE, Airport
from examples.atlas.markup import Html, html, join
from examples.atlas.visitors import MAX_NAME, favourite, visitor

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --link: light-dark(#0b57d0, #8ab4f8); }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
a { color: var(--link); text-decoration: none; } a:hover { text-decoration: underline; }
h1 { line-height: 1.2; margin: 0 0 .5rem; } h2 { margin: 2rem 0 .5rem; font-size: 1.15rem; } .quiet { opacity: .7; }
table { border-collapse: collapse; width: 100%; } .wide { overflow-x: auto; }
th, td { padding: .35rem .6rem; text-align: left; border-bottom: 1px solid var(--line); }
th { font-weight: 600; font-size: .85rem; } tbody tr:hover { background: var(--soft); }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.25rem; } dt { opacity: .7; } dd { margin: 0; }
form { display: grid; gap: 1rem; max-width: 28rem; } label { display: grid; gap: .25rem; font-weight: 600; }
input { font: inherit; font-weight: 400; padding: .45rem .6rem; width: 100%;
  border: 1px solid var(--line); border-radius: .4rem; }
button, .button { font: inherit; padding: .45rem 1rem; border: 1px solid var(--line); border-radius: .4rem;
  background: var(--soft); cursor: pointer; justify-self: start; display: inline-block; }
nav { margin-bottom: 1.5rem; display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; align-items: center; }
nav form { display: flex; gap: .5rem; margin-left: auto; } nav input { width: 9rem; }
.error { color: light-dark(#b3261e, #f2b8b5); font-weight: 400; }
"""


# --- parts -------------------------------------------------------------------------------------------


def layout(title: str, body: Html) -> Html:
    return html(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        '<nav><a href="/">The atlas of airports</a>\n<span id="hello">Hello, {visitor}!</span>\n{favourite}\n'
        '<form action="/hello"><input name="name" maxlength="{longest}" placeholder="Your name" aria-label="Your name">'
        "<button>That is me</button></form></nav>\n{body}</body>\n</html>\n",
        title=title,
        style=Html(STYLE),
        visitor=visitor(),  # text, escaped when it is filled, as it is escaped here
        favourite=Html(favourite()),  # HTML of its own
        longest=MAX_NAME,
        body=body,
    )


def airport_link(airport: Airport) -> Html:
    return html('<a href="/airports/{icao}">{name}</a>', icao=airport.icao, name=airport.name)


def country_link(code: str) -> Html:
    return html('<a href="/countries/{code}">{code}</a>', code=code)


def table(headings: Iterable[tuple[str, str]], rows: Iterable[Html]) -> Html:
    """`headings` are texts with the class of their column."""
    return html(
        '<div class="wide"><table>\n<thead><tr>{headings}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n',
        headings=join(html('<th class="{kind}">{text}</th>', text=text, kind=kind) for text, kind in headings),
        rows=join(rows),
    )


def airport_table(airports: Iterable[Airport], *, countries: bool = False) -> Html:
    rows = (
        html(
            '<tr><td>{icao}</td><td>{link}</td><td>{where}</td><td class="number">{elevation} ft</td></tr>\n',
            icao=airport.icao,
            link=airport_link(airport),
            where=country_link(airport.country) if countries else airport.city,
            elevation=f"{airport.elevation:,}",
        )
        for airport in airports
    )
    where = "Country" if countries else "City"
    return table([("Code", ""), ("Airport", ""), (where, ""), ("Elevation", "number")], rows)


# --- pages -------------------------------------------------------------------------------------------


def home(summaries: Iterable[Summary]) -> Html:
    summaries = sorted(summaries, key=lambda summary: -summary.country.airports)
    rows = (
        html(
            '<tr><td>{country}</td><td class="number">{airports}</td><td>{highest}</td>'
            '<td class="number">{elevation} ft</td></tr>\n',
            country=country_link(summary.country.code),
            airports=f"{summary.country.airports:,}",
            highest=airport_link(summary.highest),
            elevation=f"{summary.highest.elevation:,}",
        )
        for summary in summaries
    )
    return layout(
        "The atlas of airports",
        html(
            '<h1>Airports of the world</h1>\n<p class="quiet">{airports} airports in {countries} countries, '
            "and the highest of each.</p>\n{table}",
            airports=f"{sum(summary.country.airports for summary in summaries):,}",
            countries=len(summaries),
            table=table([("Country", ""), ("Airports", "number"), ("The highest", ""), ("Elevation", "number")], rows),
        ),
    )


def country(shown: Country, airports: Iterable[Airport], page: int) -> Html:
    pages = -(-shown.airports // PAGE_SIZE)
    links = [
        html('<a href="/countries/{code}?page={page}">{text}</a> ', code=shown.code, page=number, text=text)
        for number, text in ((page - 1, "← higher"), (page + 1, "lower →"))
        if 1 <= number <= pages
    ]
    return layout(
        f"{shown.code}, page {page}",
        html(
            '<h1>{code}</h1>\n<p class="quiet">{count} airports, the highest first. '
            "Page {page} of {pages}.</p>\n{table}<p>{links}</p>\n",
            code=shown.code,
            count=f"{shown.airports:,}",
            page=page,
            pages=pages,
            table=airport_table(airports),
            links=join(links),
        ),
    )


def airport(shown: Airport, nearby: Iterable[Airport]) -> Html:
    place = ", ".join(part for part in (shown.city, shown.subdivision) if part)
    facts = {
        "Country": country_link(shown.country),
        "Place": place,
        "Codes": " / ".join(code for code in (shown.icao, shown.iata) if code),
        "Elevation": f"{shown.elevation:,} ft",
        "Position": f"{shown.latitude:.4f}, {shown.longitude:.4f}",
        "Time zone": shown.timezone,
    }
    return layout(
        shown.name,
        html(
            '<h1>{name}</h1>\n<dl>{facts}</dl>\n<p><a class="button" href="/airports/{icao}/edit">Edit</a>\n'
            '<a class="button" href="/airports/{icao}/favourite" rel="nofollow">★ My favourite</a></p>\n'
            "<h2>Nearby</h2>\n{nearby}",
            name=shown.name,
            icao=shown.icao,
            facts=join(html("<dt>{term}</dt><dd>{fact}</dd>\n", term=term, fact=fact) for term, fact in facts.items()),
            nearby=airport_table(nearby, countries=True),
        ),
    )


def edit(shown: Airport, values: Mapping[str, str], errors: Mapping[str, str]) -> Html:
    """The form, with what was typed and what is wrong with it."""
    fields = join(
        html(
            '<label>{label}<input name="{name}" value="{value}" {rules}>{error}</label>\n',
            label=label,
            name=name,
            value=values.get(name, ""),
            rules=Html(rules),
            error=html(' <span class="error">{text}</span>', text=errors[name]) if name in errors else Html(),
        )
        for name, label, rules in (
            ("name", "Name", 'required maxlength="100"'),
            ("elevation", "Elevation (feet)", 'required inputmode="numeric" pattern="-?[0-9]+"'),
        )
    )
    return layout(
        f"Edit {shown.name}",
        html(
            '<h1>Edit {name}</h1>\n<form method="post" action="/airports/{icao}/edit">\n{fields}'
            "<button>Save</button>\n</form>\n",
            name=shown.name,
            icao=shown.icao,
            fields=fields,
        ),
    )


def saved(icao: str) -> Html:
    return layout(
        "Saved",
        html(
            "<h1>Saved</h1>\n<p>The server of the cache does not answer. Until it does, some pages may show what was "
            'there before.</p>\n<p><a class="button" href="/airports/{icao}">Go on</a></p>\n',
            icao=icao,
        ),
    )


def suspicious(airports: Iterable[Airport]) -> Html:
    return layout(
        "To be checked",
        html(
            '<h1>To be checked</h1>\n<p class="quiet">At sea level, and in no city: maybe never entered.</p>\n{table}',
            table=airport_table(airports, countries=True),
        ),
    )


def not_found() -> Html:
    return layout("Not found", html("<h1>Not found</h1>\n<p>There is no such page in the atlas.</p>\n"))
