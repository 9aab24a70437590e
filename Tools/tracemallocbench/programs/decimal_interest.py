"""decimal: compound interest, digits of pi, rounding and formatting."""

from decimal import ROUND_HALF_UP, Decimal, localcontext

CENT = Decimal('0.01')


def balances(years):
    amount = Decimal('1000.00')
    rows = []
    for year in range(years):
        rate = Decimal(year % 9 + 1) / 100
        amount = (amount * (1 + rate)).quantize(CENT, ROUND_HALF_UP)
        rows.append((year, amount, f'{amount:>20,.2f}'))
        if amount > 10**9:
            amount = Decimal('1000.00')
    return rows


def arctan(inverse):
    """arctan(1 / inverse), by its Taylor series."""
    power = total = 1 / Decimal(inverse)
    divisor, sign = 1, 1
    while power > Decimal('1e-50'):
        power /= inverse * inverse
        divisor += 2
        sign = -sign
        total += sign * power / divisor
    return total


def pi():
    # Machin's formula.
    with localcontext() as context:
        context.prec = 50
        return 16 * arctan(5) - 4 * arctan(239)


def main(n):
    rows = []
    for _ in range(6 * n):
        rows = balances(200)
        rows.append(pi())
    texts = [str(row[1]) for row in rows[:-1]]
    return rows, sum(map(Decimal, texts)), texts
