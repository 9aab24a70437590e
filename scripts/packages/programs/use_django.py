"""django: set up, forms validated, templates rendered, a table queried."""

import sys

sys.path.append('/usr/lib/python3/dist-packages')

import django
from django.conf import settings

settings.configure(
    TEMPLATES=[{'BACKEND': 'django.template.backends.django.DjangoTemplates'}],
    DATABASES={'default': {'ENGINE': 'django.db.backends.sqlite3',
                           'NAME': ':memory:'}},
    INSTALLED_APPS=['django.contrib.contenttypes'], USE_TZ=True)
django.setup()

from django import forms, template
from django.contrib.contenttypes.models import ContentType
from django.db import connection


class Entry(forms.Form):
    name = forms.CharField(max_length=9)
    age = forms.IntegerField(min_value=3)


def main(n):
    entries = [Entry({'name': 'name' * (i % 4), 'age': i % 7})
               for i in range(30 * n)]
    valid = [entry.is_valid() for entry in entries]
    page = template.Template(
        '{% for one in entries %}<li>{{ one.name.value|title }}'
        '{{ one.errors }}</li>{% endfor %}')
    text = page.render(template.Context({'entries': entries}))
    with connection.schema_editor() as editor:
        editor.create_model(ContentType)
    ContentType.objects.bulk_create(
        ContentType(app_label=f'label{i}', model=f'm{i}')
        for i in range(30 * n))
    rows = list(ContentType.objects.filter(model__contains='1').values())
    connection.close()
    return valid, text, rows
