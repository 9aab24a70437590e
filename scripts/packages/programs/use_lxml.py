"""lxml: a document parsed, searched, changed and written."""

import sys

sys.path.append('/usr/lib/python3/dist-packages')

from lxml import etree, objectify


def main(n):
    text = '<list>' + ''.join(
        f'<item id="{i}"><name>name {i}</name><price>{i / 7}</price></item>'
        for i in range(200 * n)) + '</list>'
    root = etree.fromstring(text)
    names = root.xpath('item[price > 10]/name/text()')
    for item in root.iterfind('item'):
        item.append(etree.Element('more', kind='added'))
    prices = [item.price.pyval for item in objectify.fromstring(text).item]
    try:
        etree.fromstring('<list><item></list>')
    except etree.XMLSyntaxError as error:
        message = str(error)
    return root, names, prices, message, etree.tostring(root)
