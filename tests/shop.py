"""The schema of a small shop, for tests of SQLAlchemy's sessions: links of every kind, and what a cache makes of it."""

from sqlalchemy import Column, ForeignKey, Table
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

__all__ = ["Base", "Book", "Category", "Item", "Label", "Line", "Node", "Order", "Product"]


class Base(DeclarativeBase):
    pass


product_label = Table(
    "product_label",
    Base.metadata,
    Column("product_id", ForeignKey("product.id"), primary_key=True),
    Column("label_id", ForeignKey("label.id"), primary_key=True),
)


class Category(Base):
    __tablename__ = "category"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(default="new")
    favourite_id: Mapped[int | None] = mapped_column(ForeignKey("product.id", use_alter=True))
    favourite: Mapped["Product | None"] = relationship(foreign_keys=favourite_id, post_update=True)
    products: Mapped[list["Product"]] = relationship(
        back_populates="category", foreign_keys="Product.category_id", order_by="Product.id"
    )


class Product(Base):
    __tablename__ = "product"
    __cache_tags__ = ("of_category:{category_id}",)
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "plain"}  # noqa: RUF012
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(default="plain")
    price: Mapped[int] = mapped_column(default=1)
    category_id: Mapped[int | None] = mapped_column(ForeignKey("category.id"))
    category: Mapped[Category | None] = relationship(back_populates="products", foreign_keys=category_id)
    labels: Mapped[list["Label"]] = relationship(secondary=product_label, order_by="Label.id")


class Book(Product):
    __tablename__ = "book"
    __mapper_args__ = {"polymorphic_identity": "book"}  # noqa: RUF012
    id: Mapped[int] = mapped_column(ForeignKey("product.id"), primary_key=True)
    pages: Mapped[int] = mapped_column(default=100)


class Label(Base):
    __tablename__ = "label"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(default="new")


class Order(Base):
    __tablename__ = "order"
    id: Mapped[int] = mapped_column(primary_key=True)
    lines: Mapped[list["Line"]] = relationship(cascade="all, delete-orphan", order_by="Line.line")


class Line(Base):
    __tablename__ = "line"
    order_id: Mapped[int] = mapped_column(ForeignKey("order.id"), primary_key=True)
    line: Mapped[int] = mapped_column(primary_key=True)
    count: Mapped[int] = mapped_column(default=1)


class Node(Base):
    """A tree, whose branches the database deletes, and the items on them."""

    __tablename__ = "node"
    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("node.id", ondelete="CASCADE"))
    children: Mapped[list["Node"]] = relationship(passive_deletes=True)


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    node_id: Mapped[int | None] = mapped_column(ForeignKey("node.id", ondelete="SET NULL"))
