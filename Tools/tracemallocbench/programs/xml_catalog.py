"""xml: build, write, parse and query a catalog with ElementTree and SAX."""

import io
import xml.etree.ElementTree as ElementTree
import xml.sax


class Titles(xml.sax.ContentHandler):
    def __init__(self):
        super().__init__()
        self.titles = []
        self.inside = False

    def startElement(self, name, attributes):
        self.inside = name == 'title'
        if name == 'book':
            self.titles.append(dict(attributes))

    def characters(self, content):
        if self.inside:
            self.titles.append(content)


def catalog(books):
    root = ElementTree.Element('catalog', version='1')
    for number in range(books):
        book = ElementTree.SubElement(root, 'book', id=f'b{number}')
        ElementTree.SubElement(book, 'title').text = f'Title <{number}>'
        for key in 'author', 'price', 'year':
            child = ElementTree.SubElement(book, key, {'n': str(number)})
            child.text = f'{key} & {number}'
    return root


def main(n):
    text = ElementTree.tostring(catalog(45 * n), 'unicode')
    root = ElementTree.fromstring(text)
    found = [child.text for child in root.findall("./book/price[@n='7']")]
    for book in root.iter('book'):
        found.append({child.tag: child.text for child in book})
    for _, element in ElementTree.iterparse(io.StringIO(text)):
        found.append(element.tag)
    handler = Titles()
    xml.sax.parseString(text.encode(), handler)
    return root, found, handler.titles
