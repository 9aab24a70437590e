"""sqlalchemy: mapped classes, stored and queried in SQLite."""

import sys

sys.path.append('/usr/lib/python3/dist-packages')

from sqlalchemy import ForeignKey, create_engine, func, select
from sqlalchemy.orm import (
    DeclarativeBase, Mapped, Session, mapped_column, relationship)


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = 'customer'
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    orders: Mapped[list['Order']] = relationship(back_populates='customer')


class Order(Base):
    __tablename__ = 'order'
    id: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[float]
    customer_id: Mapped[int] = mapped_column(ForeignKey('customer.id'))
    customer: Mapped[Customer] = relationship(back_populates='orders')


def main(n):
    engine = create_engine('sqlite://')
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(Customer(name=f'name {i}', orders=[
            Order(amount=i / (k + 1)) for k in range(5)])
            for i in range(40 * n))
        session.commit()
        sums = select(Customer.name, func.sum(Order.amount)).join(
            Customer.orders).group_by(Customer.name)
        kept = [tuple(row) for row in session.execute(sums)]
        loaded = session.scalars(select(Order).where(Order.amount > 9)).all()
        names = [(order.customer.name, order.amount) for order in loaded]
    engine.dispose()
    return kept, names
