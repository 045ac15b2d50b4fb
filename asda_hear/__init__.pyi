from asda_hear.api import get_scene_embeddings as get_scene_embeddings
from asda_hear.api import get_timestamp_embeddings as get_timestamp_embeddings
from asda_hear.api import load_model as load_model
