"""Tables that LeMat-GenBench's metrics are defined by, see NOTICE.

Of LeMat-GenBench (Apache-2.0), commit 5bab2cd: the oxidation states that occur in
LeMat-Bulk and in the ICSD (`lemat_icsd_oxi_state_mapping.json`), and the
Herfindahl-Hirschman index of the elements' production and reserves
(`element_properties.json`; by country, 0 to 10,000; after Gaultois et al., Chem. Mater.
25, 2911 (2013)).
"""

_STATES = """
Ag 1 2 3; Al 2 3; As -3 -2 -1 2 3 5; B -3 -2 -1 1 2 3; Ba 2; Be 2; Bi -3 1 2 3 5; Br
-1 1 3 5; C -4 -3 -2 -1 1 2 3 4; Ca 2; Cd 2; Ce 2 3 4; Cl -1 3 5 7; Co 1 2 3 4; Cr 2 3
4 5 6; Cs 1; Cu 1 2 3; Dy 2 3; Er 3; Eu 2 3; F -1; Fe 1 2 3 4 5 6; Ga 1 2 3 4; Gd 2 3;
Ge -4 -2 2 3 4; H -1 1; Hf 2 3 4; Hg 1 2; Ho 2 3; I -1 1 3 5 7; In 1 2 3; Ir 3 4 5 6;
K 1; La 1 2 3; Li 1; Lu 3; Mg 2; Mn 1 2 3 4 5 6 7; Mo 2 3 4 5 6; N -3 -2 -1 1 2 3 4 5;
Na 1; Nb 1 2 3 4 5 7; Nd 2 3; Ni 1 2 3 4; O -2 -1; P -3 -2 -1 1 2 3 4 5; Pb 2 4; Pd 2
3 4; Pr 2 3 4; Rb 1; Re 2 3 4 5 6 7; Rh 1 2 3 4 5; Ru 2 3 4 5 6 8; S -2 -1 1 2 3 4 5
6; Sb -3 -2 -1 3 4 5; Sc 1 2 3; Se -2 -1 1 2 3 4 6; Si -4 -2 -1 2 3 4; Sm 2 3; Sn 2 3
4; Sr 2; Ta 1 2 3 4 5; Tb 1 2 3 4; Te -2 -1 1 2 4 5 6; Th 3 4; Ti 2 3 4; Tl 1 3; Tm 2
3; U 2 3 4 5 6; V 2 3 4 5; W 2 3 4 5 6; Y 1 2 3; Yb 2 3; Zn 2; Zr 1 2 3 4; Kr 2; Tc 1
2 3 4 5 6 7; Xe 2 4 6 8; Pm 3; Os 1 2 3 4 5 6 7 8; Pt -2 1 2 3 4 5 6; Au -1 1 2 3 5;
Po 4; Ra 2; Ac 3; Pa 3 4 5; Np 2 3 4 5 6 7; Pu 2 3 4 5 6 7; Am 2 3 4 5 6; Cm 3 4; Bk 3
4; Cf 3; Es 3
"""
_HHI = """
H 0 0; He 0 0; Li 2850 4180; Be 8074 4000; B 2929 1980; C 500 500; N 1329 500; O 500
500; F 1500 1500; Ne 0 0; Na 1102 500; Mg 5259 500; Al 1569 1000; Si 4708 1000; P 1951
5063; S 737 1000; Cl 1500 1500; Ar 0 0; K 1738 7201; Ca 3860 1500; Sc 5500 4500; Ti
1119 1552; V 3266 3397; Cr 3103 4053; Mn 1593 1790; Fe 2424 1373; Co 3052 2655; Ni 988
1479; Cu 1576 1524; Zn 1574 1895; Ga 5500 1895; Ge 5267 1895; As 3337 4000; Se 2225
1910; Br 3299 6880; Kr 0 0; Rb 6000 6000; Sr 4179 3000; Y 9834 2646; Zr 3410 2595; Nb
8525 8792; Mo 2410 5260; Tc 0 0; Ru 3239 8000; Rh 3239 8000; Pd 3239 8000; Ag 1229
1368; Cd 1676 1341; In 3333 2000; Sn 2591 1639; Sb 7906 3419; Te 2892 4934; I 4887
4836; Xe 0 0; Cs 6000 6000; Ba 2973 2347; La 9476 3129; Ce 9476 3129; Pr 9476 3129; Nd
9476 3129; Pm 9476 3129; Sm 9476 3129; Eu 9476 3129; Gd 9476 3129; Tb 9476 3129; Dy
9476 3129; Ho 9476 3129; Er 9476 3129; Tm 9476 3129; Yb 9476 3129; Lu 9476 3129; Hf
3410 2595; Ta 2252 4811; W 6981 4297; Re 3258 3314; Os 5504 9087; Ir 5504 9087; Pt
5504 9087; Au 1119 1040; Hg 5505 3054; Tl 6500 6500; Pb 2716 1781; Bi 5296 5993
"""


def _read(table: str) -> dict[str, tuple[int, ...]]:
    rows = (row.split() for row in table.split(";"))
    return {symbol: tuple(map(int, numbers)) for symbol, *numbers in rows}


OXIDATION_STATES = _read(_STATES)  # by symbol
HHI = _read(_HHI)  # by symbol: of production, of reserves
