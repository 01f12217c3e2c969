"""The inputs of a synthetic world: large-scale state, surface and gases at a step.

Profiles are ``(60, n)``, scalars ``(n,)``. Means and spreads per level follow the tables in ``climsim/figures``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from leapray.climsim.calendar import DAYS_PER_YEAR, STEPS_PER_DAY, Moment
from leapray.climsim.grid import figures, pressure
from leapray.climsim.schema import KAGGLE, LEVELS, MISSING
from leapray.climsim.synthetic.moisture import HAZE_TOP, HUMIDITY_TOP, Patterns, Scales, cloud_pattern, knots, make_moisture, solve_scales
from leapray.climsim.synthetic.place import Place, make_place
from leapray.climsim.synthetic.thermo import GAS_DRY, HEAT_CAPACITY, LATENT_VAPOUR, STEFAN_BOLTZMANN, saturation
from leapray.climsim.synthetic.weather import WaveField, vertical_loadings

_SOLAR_CONSTANT = 1361.0
_BROAD, _FINE = 10, 24
_PATTERNS = _BROAD + _FINE
_PROFILES = {"temperature": 0.04, "humidity": 0.4, "cloud": 0.5, "trace": 0.2, "zonal": 0.15, "meridional": 0.15}
"""Weather patterns of profiles, and the share of their variance that varies from one level to the next rather than over the troposphere."""
_SURFACES = ("pressure", "contrast", "exchange")
_CALIBRATION_SEED = 987654321


@dataclass(frozen=True)
class Figures:
    """Moments per level of one input profile, each ``(60,)``."""

    mean: np.ndarray
    std: np.ndarray
    low: np.ndarray
    high: np.ndarray


def profile_figures(kind: str, name: str) -> Figures:
    """Published moments of an input profile of a kind; the aqua-planet, of which none are published, takes those of low-res."""
    table = figures("high_res_columns" if kind == "high-res" else "low_res_columns")
    columns = KAGGLE.raw[name]
    return Figures(*(np.array(table[key][columns], dtype=np.float64) for key in ("mean", "std", "min", "max")))


_TEMPERATURE_LATITUDE = knots(l0=0.2, l8=0.1, l12=-0.2, l15=-0.6, l17=-0.88, l19=-0.85, l21=-0.2, l23=0.5, l26=0.8, l30=0.88, l59=0.88)
_TEMPERATURE_SEASON = knots(l0=-0.5, l3=0.2, l6=0.8, l12=0.7, l15=0.35, l17=0.15, l21=0.3, l26=0.25, l59=0.28)
_POLAR_VORTEX = knots(l4=0.0, l8=16.0, l12=26.0, l16=24.0, l20=16.0, l26=9.0, l40=7.0, l59=8.0)
"""How much colder, in K, air over the Antarctic is in winter than its mirror image over the Arctic."""
_MONSOON = knots(l20=0.0, l24=4.0, l28=6.0, l34=4.0, l45=2.0, l59=0.0)
"""How much warmer, in K, air near 20 N is in summer than its mirror image near 20 S."""
_CONVECTIVE_CAP = knots(l18=0.0, l24=0.2, l36=0.2, l50=0.0)
"""Skewness of temperature: convection keeps the upper troposphere from warming far above normal."""
_ZONAL_JETS = knots(l0=0.2, l12=0.3, l17=0.6, l25=0.65, l45=0.6, l52=0.3, l59=0.1)
_ZONAL_SEASON = knots(l0=0.75, l10=0.7, l16=0.3, l22=0.0)
_ZONAL_TRADES = knots(l0=0.0, l45=0.2, l52=0.45, l59=0.5)
_HUMIDITY_LATITUDE = 0.45
_HUMIDITY_SPREAD = {"low-res": 0.8, "aqua-planet": 0.8, "high-res": 1.2}
"""Spread of the logit of relative humidity; finer columns see more of what a coarse one averages."""
_SHARPNESS = 0.6
"""How far high-res weather departs from a normal distribution: sinh(0.6 z) has a kurtosis near 7."""


class Climate:
    """Inputs of a kind at any step. The weather depends on the seed, the climate and its scales do not."""

    def __init__(self, kind: str, place: Place, seed: int, scales: Scales | None = None) -> None:
        self.kind, self.place = kind, place
        self.figures = {name: profile_figures(kind, name) for name in (v.name for v in KAGGLE.raw.profiles)}
        patterns = _PATTERNS * len(_PROFILES) + len(_SURFACES)
        self._fields = [(1.0, WaveField(place.points, patterns, (seed, 0), length=0.35, days=1.6))]
        if kind == "high-res":
            self._fields = [(0.8, self._fields[0][1]), (0.6, WaveField(place.points, patterns, (seed, 1), length=0.1, days=0.5, waves=160))]
        broad, fine = vertical_loadings(_BROAD, 5.0), vertical_loadings(_FINE, 1.2)
        self._loadings = {name: np.hstack([np.sqrt(1 - share) * broad, np.sqrt(share) * fine]) for name, share in _PROFILES.items()}
        self.scales = _calibrated_scales(kind) if scales is None else scales

    def at(self, step: int) -> dict[str, np.ndarray]:
        """Every variable of an mli file at an absolute step."""
        moment = Moment.of_step(step)
        weather = self._weather(step)
        sun = _Sun(moment, self.place)
        state = self._dry_state(weather, sun)
        state |= self._moisture(state, weather)
        state |= self._surface(state, weather, sun)
        return state | self._gases(sun)

    def _weather(self, step: int) -> dict[str, np.ndarray]:
        """Unit-variance patterns: profiles ``(60, n)`` by name, then surface fields ``(n,)``."""
        patterns = np.sum([share * field.at(step) for share, field in self._fields], axis=0)
        if self.kind == "high-res":
            patterns = np.sinh(_SHARPNESS * patterns) / np.sqrt(np.expm1(2 * _SHARPNESS**2) / 2)
        blocks = patterns[: _PATTERNS * len(_PROFILES)].reshape(len(_PROFILES), _PATTERNS, -1)
        profiles = {name: self._loadings[name] @ block for name, block in zip(_PROFILES, blocks, strict=True)}
        return profiles | dict(zip(_SURFACES, patterns[_PATTERNS * len(_PROFILES) :], strict=True))

    def _dry_state(self, weather: dict[str, np.ndarray], sun: _Sun) -> dict[str, np.ndarray]:
        sine = self.place.sine
        warmth = (1 / 3 - sine**2) / np.sqrt(4 / 45)
        season = sine * sun.annual * np.sqrt(6)
        jets = (np.sin(2 * self.place.latitude) ** 2 - 8 / 15) / np.sqrt(0.1)
        trades = -np.cos(3 * self.place.latitude) * 1.4
        parts = {
            "state_t": [(_TEMPERATURE_LATITUDE, warmth), (_TEMPERATURE_SEASON, season)],
            "state_u": [(_ZONAL_JETS, jets), (_ZONAL_SEASON, -np.sign(sine) * season), (_ZONAL_TRADES, trades)],
            "state_v": [(_ZONAL_TRADES * 0.5, -season * (1 - sine**2))],
        }
        state: dict[str, np.ndarray] = {}
        for name, pattern in zip(parts, ("temperature", "zonal", "meridional"), strict=True):
            known = sum(share * shape for share, shape in parts[name])
            rest = np.sqrt(np.maximum(1 - sum(share**2 for share, _ in parts[name]), 0.05))
            moments = self.figures[name]
            scatter, shift = weather[pattern], np.zeros(1)
            if name == "state_t":
                # weather moves temperature least in the tropics
                calm = (0.4 + 0.95 * np.abs(sine)) / 0.917
                scatter = calm * (scatter - _CONVECTIVE_CAP * (np.clip(scatter, -2.5, 2.5) ** 2 - 1))
                shift = self._continents(sun)
            value = moments.mean[:, None] + moments.std[:, None] * (known + rest * scatter) + shift
            state[name] = np.clip(value, moments.low[:, None], moments.high[:, None])
        near_ground = np.exp((np.arange(LEVELS)[:, None] - LEVELS + 1) / 3.0)
        drag = 1 - near_ground**2 * (0.2 + 0.1 * np.clip(weather["exchange"], -2, 2))
        state["state_u"], state["state_v"] = state["state_u"] * drag, state["state_v"] * drag
        state["state_t"] += near_ground * 3.0 * self.place.land * sun.afternoon
        swing = 300.0 if self.kind == "aqua-planet" else 900.0
        state["state_ps"] = (101200.0 + swing * weather["pressure"]) * np.exp(-self.place.height / 8000.0)
        state["state_pmid"] = np.ascontiguousarray(pressure(state["state_ps"]).T)
        return state

    def _continents(self, sun: _Sun) -> np.ndarray:
        """What makes the hemispheres' summers and winters unlike, in K ``(60, n)``; 0 where there is no land."""
        if self.kind == "aqua-planet":
            return np.zeros((LEVELS, 1))
        sine, summer = self.place.sine, max(sun.annual, 0.0)
        return summer * (_MONSOON * np.exp(-(((sine - 0.34) / 0.2) ** 2)) - _POLAR_VORTEX * np.maximum(-sine, 0) ** 8)

    def _moisture(self, state: dict[str, np.ndarray], weather: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return make_moisture(self._moisture_patterns(state, weather), self.scales, state["state_t"], weather["trace"])

    def _moisture_patterns(self, state: dict[str, np.ndarray], weather: dict[str, np.ndarray]) -> Patterns:
        temperature, tropics = state["state_t"], np.cos(6 * self.place.latitude) * 1.4
        humidity = _HUMIDITY_LATITUDE * tropics + np.sqrt(1 - _HUMIDITY_LATITUDE**2) * weather["humidity"]
        saturated = saturation(temperature, state["state_pmid"])
        vapour = saturated.copy()
        vapour[:HUMIDITY_TOP] = _lognormal(self.figures["state_q0001"], weather["humidity"])[:HUMIDITY_TOP]
        return Patterns(
            vapour=vapour,
            saturation=saturated,
            humidity=_HUMIDITY_SPREAD[self.kind] * humidity,
            cloud=cloud_pattern(humidity, weather["cloud"]),
            top_liquid=_lognormal(self.figures["state_q0002"], weather["trace"])[:HAZE_TOP],
            top_ice=_lognormal(self.figures["state_q0003"], weather["cloud"])[:HAZE_TOP],
        )

    def _surface(self, state: dict[str, np.ndarray], weather: dict[str, np.ndarray], sun: _Sun) -> dict[str, np.ndarray]:
        place, aqua = self.place, self.kind == "aqua-planet"
        air, humidity, u, v = (state[name][-1] for name in ("state_t", "state_q0001", "state_u", "state_v"))
        if aqua:
            moments, warmth = self.figures["state_t"], (1 / 3 - place.sine**2) / np.sqrt(4 / 45)
            ground = np.maximum(moments.mean[-1] + moments.std[-1] * warmth * 0.88, 271.4) + 1.0 + 0.05 * weather["contrast"]
        else:
            ground = air + 1.2 + (1.6 + 2.5 * place.land) * weather["contrast"] + 9.0 * place.land * (sun.cosine - 0.25)
        ocean = 1 - place.land
        ice = ocean * np.clip((270.0 - ground) / 10.0, 0, 0.99) * (not aqua)
        snow = place.land * np.clip((268.0 - air) / 14.0 + 0.15 * weather["exchange"], 0, 1)
        density = state["state_pmid"][-1] / (GAS_DRY * air)
        wind = np.sqrt(u**2 + v**2 + 4.0)
        rough = 1 + 1.2 * place.land
        transfer = 1.0e-3 * density * wind * np.exp(0.25 * weather["exchange"])
        wetness = 1 - 0.55 * place.land - 0.9 * ice
        surface = {
            "pbuf_SOLIN": sun.insolation,
            "pbuf_LHFLX": LATENT_VAPOUR * transfer * wetness * (saturation(ground, state["state_ps"]) - humidity),
            "pbuf_SHFLX": HEAT_CAPACITY * transfer * rough * (ground - air),
            "pbuf_TAUX": -transfer * rough * u,
            "pbuf_TAUY": -transfer * rough * v,
            "pbuf_COSZRS": sun.cosine,
            "cam_in_LWUP": STEFAN_BOLTZMANN * ground**4,
            "cam_in_ICEFRAC": ice,
            "cam_in_LANDFRAC": place.land.copy(),
            "cam_in_OCNFRAC": ocean - ice,
            "cam_in_SNOWHICE": np.where(ice > 0, 0.05 + 0.5 * ice, MISSING),
            "cam_in_SNOWHLAND": snow,
        }
        return surface | _albedos(sun.cosine, place.land, ice, snow)

    def _gases(self, sun: _Sun) -> dict[str, np.ndarray]:
        """Ozone is a climatology of place and season; methane and nitrous oxide fall off towards the poles and are constant below."""
        sine = self.place.sine
        height = np.linspace(0, 1, LEVELS)[:, None]
        shape = 0.8 * (sine**2 - 1 / 3) / np.sqrt(4 / 45) * np.cos(2.6 * np.pi * (1 - height)) + 0.6 * sine * sun.annual * np.sqrt(6)
        gases = {"pbuf_ozone": _lognormal(self.figures["pbuf_ozone"], shape)}
        for name in ("pbuf_CH4", "pbuf_N2O"):
            moments = self.figures[name]
            fall = (1 / 3 - sine**2 + 0.15 * sine * sun.annual) / np.sqrt(4 / 45)
            value = moments.mean[:, None] + moments.std[:, None] * fall
            mixed = moments.std < 1e-9 * moments.mean
            gases[name] = np.where(mixed[:, None], moments.high[:, None], np.clip(value, moments.low[:, None], moments.high[:, None]))
        return gases


class _Sun:
    """The sun over a place at a moment: declination, hour angle and the ellipse of the orbit."""

    def __init__(self, moment: Moment, place: Place) -> None:
        year = 2 * np.pi * moment.day_of_year / DAYS_PER_YEAR
        declination = np.radians(23.44) * np.sin(year - 2 * np.pi * 80 / DAYS_PER_YEAR)
        hour = 2 * np.pi * moment.second / 86400 + place.longitude - np.pi
        cosine = np.sin(place.latitude) * np.sin(declination) + np.cos(place.latitude) * np.cos(declination) * np.cos(hour)
        self.cosine = np.maximum(cosine, 0.0)
        self.insolation = _SOLAR_CONSTANT * (1 + 0.0334 * np.cos(year - 2 * np.pi * 3 / DAYS_PER_YEAR)) * self.cosine
        self.annual = np.cos(year - 2 * np.pi * 205 / DAYS_PER_YEAR)
        """1 late in the northern summer, -1 in its winter."""
        self.afternoon = np.cos(hour - np.pi / 6)
        """1 two hours after local noon."""


def _albedos(cosine: np.ndarray, land: np.ndarray, ice: np.ndarray, snow: np.ndarray) -> dict[str, np.ndarray]:
    """Albedos by surface, 1 at night as in the real data; direct light on open water is reflected more at a low sun (Briegleb 1986)."""
    water_direct = 0.026 / (cosine**1.7 + 0.065) + 0.15 * (cosine - 0.1) * (cosine - 0.5) * (cosine - 1.0)
    bare, ocean = land - land * snow, np.maximum(1 - land - ice, 0)
    albedos = {}
    for name, water, soil, white in (
        ("ALDIF", 0.06, 0.26, 0.65),
        ("ALDIR", water_direct, 0.26 + 0.1 * (0.5 - cosine), 0.65),
        ("ASDIF", 0.06, 0.12, 0.85),
        ("ASDIR", water_direct, 0.12 + 0.05 * (0.5 - cosine), 0.85),
    ):
        day = ocean * water + bare * soil + land * snow * white + ice * (white - 0.05)
        albedos[f"cam_in_{name}"] = np.where(cosine > 0, np.clip(day, 0.009, 1.0), 1.0)
    return albedos


def _lognormal(moments: Figures, pattern: np.ndarray) -> np.ndarray:
    """A positive profile ``(60, n)`` with the given mean and std for a standard normal pattern, kept within the published range."""
    variance = np.log1p((moments.std / moments.mean) ** 2)[:, None]
    value = moments.mean[:, None] * np.exp(np.sqrt(variance) * pattern - variance / 2)
    return np.clip(value, moments.low[:, None], moments.high[:, None])


@lru_cache
def _calibrated_scales(kind: str) -> Scales:
    """A kind's scales, with which the means of vapour and cloud water over a fixed sample of the year equal the published ones."""
    climate = Climate(kind, make_place(kind, 192), _CALIBRATION_SEED, Scales(*np.zeros((2, LEVELS))))
    samples = []
    for step in range(7, DAYS_PER_YEAR * STEPS_PER_DAY, 1999):
        weather = climate._weather(step)
        dry = climate._dry_state(weather, _Sun(Moment.of_step(step), climate.place))
        samples.append(climate._moisture_patterns(dry, weather))
    water = [climate.figures[f"state_q000{n}"].mean for n in (1, 2, 3)]
    return solve_scales(samples, water[0], water[1] + water[2])
