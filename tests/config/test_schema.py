"""The records of a sweep file."""

from prefixray.config.schema import DecodingSettings, FinalConfig


def test_the_final_stage_lists_its_own_keys_and_then_those_of_decoding() -> None:
    keys = list(FinalConfig.model_fields)
    assert keys[0] == "candidates"
    assert keys[-len(DecodingSettings.model_fields) :] == list(DecodingSettings.model_fields)


def test_the_decoding_settings_of_a_final_stage_are_a_record_of_their_own() -> None:
    final = FinalConfig(num_seeds=3, num_beams=2, max_new_tokens=9)
    assert final.decoding == DecodingSettings(num_beams=2, max_new_tokens=9)
    assert type(final.decoding) is DecodingSettings
