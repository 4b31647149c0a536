"""Fictitious people: a frozen list of names, and the draw of subjects from it.

The list is part of the package because name generators change between versions. No name is, or holds as
a word, an answer of a shipped association (no Paris, no Ruby, no Carpenter), so a name gives nothing away.
"""

from __future__ import annotations

from ocr_eval.common import streams
from ocr_eval.common.errors import UserError

FIRST_NAMES = """
Aaron Abigail Adam Adrian Alan Albert Alejandro Alex Alexandra Alexis Alicia Alison Allison
Alyssa Amanda Amy Andre Andrea Andrew Angela Anita Ann Anna Anne Annette Anthony Antonio April
Arthur Ashley Barbara Barry Benjamin Beth Billy Bobby Bonnie Brad Brandi Brandon Brandy Brenda
Brendan Brent Brett Brian Brianna Brittany Brittney Brooke Bruce Bryan Caitlin Caleb Calvin
Cameron Carl Carla Carlos Carolyn Carrie Cassandra Catherine Cathy Chad Charles Chase Cheryl
Chris Christian Christina Christine Christopher Christy Cindy Cody Colin Colleen Connie Connor
Corey Cory Courtney Cynthia Dale Dana Danielle Danny Darrell Darren David Dawn Deanna Debbie
Deborah Debra Denise Derek Derrick Devin Diana Diane Donald Donna Dustin Dwayne Dylan Eddie
Edward Edwin Elizabeth Emily Eric Erica Erik Erika Erin Ernest Ethan Eugene Evan Felicia
Francisco Frank Frederick Gabriel Gary Gerald Gina Glenn Haley Hannah Harold Heather Hector
Heidi Holly Ian Isaac Jack Jacob Jacqueline Jamie Janet Janice Jared Jasmine Jason Jay Jeff
Jeffery Jeffrey Jenna Jennifer Jeremiah Jeremy Jerry Jesse Jessica Jesus Jill Jimmy Joe Joel
John Johnathan Johnny Jon Jonathan Jorge Jose Joshua Juan Julie Justin Kaitlyn Kara Karen
Katelyn Katherine Kathleen Kathryn Kathy Katie Katrina Kayla Keith Kelsey Kendra Kenneth Kevin
Kimberly Kristen Kristin Kristina Kurt Kyle Lance Larry Laura Lauren Laurie Leah Leslie Linda
Lindsay Lindsey Lisa Logan Lori Louis Luis Luke Lynn Manuel Marc Marcus Margaret Maria Marie
Mario Marissa Mark Martha Marvin Mary Matthew Maurice Megan Meghan Melanie Melinda Melissa
Michael Micheal Michele Michelle Miguel Mike Misty Molly Monica Nancy Natalie Natasha Nathan
Nathaniel Nicholas Nicole Noah Olivia Oscar Pamela Patricia Patrick Paula Peter Philip Phillip
Rachel Ralph Randall Randy Raymond Rebecca Regina Reginald Renee Rhonda Ricardo Richard Ricky
Robert Roberto Robin Rodney Roger Ronald Ronnie Roy Ruben Sabrina Samantha Samuel Sandra Sara
Sarah Sean Seth Shane Shannon Sharon Shaun Shawn Sheila Shelby Shelly Sherry Stacey Stacy
Stephanie Stephen Steve Steven Susan Suzanne Tamara Tammy Tanya Tara Teresa Terri Theresa
Tiffany Tim Timothy Tina Tommy Tony Tonya Tracey Tracy Travis Trevor Troy Valerie Vanessa
Veronica Victor Victoria Vincent Walter Wanda Wayne Wendy Wesley Whitney William Willie Zachary
""".split()

LAST_NAMES = """
Acosta Adams Aguilar Alexander Allen Alvarado Alvarez Anderson Andrews Armstrong Arnold Baldwin
Barker Barnes Barnett Barrett Bates Beck Becker Bell Bennett Benson Berry Blair Bowen Bowman
Boyd Bradley Brooks Bryant Burke Burns Burton Bush Byrd Caldwell Campbell Carlson Carr Carroll
Castillo Castro Chambers Chapman Chavez Chen Clark Cohen Cole Coleman Collins Contreras Cortez
Cox Craig Crawford Cross Cruz Cummings Cunningham Curtis Daniel Daniels Davidson Davis Dawson
Day Delgado Dennis Diaz Dixon Dominguez Douglas Duncan Dunn Edwards Elliott Ellis Erickson
Espinoza Estrada Evans Ferguson Fernandez Fields Fleming Fletcher Flores Ford Foster Fox
Franklin Frazier Freeman Fuller Garcia Garrett Garza George Gibson Gilbert Gomez Gonzales
Gonzalez Gordon Graham Grant Graves Greene Gregory Griffin Griffith Gross Guerrero Gutierrez
Guzman Hale Hall Hamilton Hansen Hanson Hardy Harper Harris Harrison Hart Harvey Hawkins Hayes
Haynes Henderson Henry Hernandez Herrera Hicks Higgins Hill Hoffman Holmes Holt Hopkins Horton
Howard Howell Hudson Hughes Hunt Jacobs James Jenkins Jennings Jensen Jimenez Johnson Johnston
Jones Joseph Keller Kelley Kelly Kennedy Kim Klein Lambert Lane Larson Lawrence Lawson Lee
Leonard Lewis Little Long Lopez Love Lowe Lucas Luna Lynch Lyons Maldonado Mann Marquez Martin
Martinez Matthews May Mccarthy Mccoy Mcdaniel Mcdonald Mckinney Medina Mendez Mendoza Meyer
Miles Mills Mitchell Montgomery Moore Morales Moran Moreno Morgan Morris Morrison Moss Munoz
Murphy Murray Myers Navarro Neal Nelson Newman Nguyen Nichols Norris Nunez Obrien Oconnor Oliver
Olson Ortega Ortiz Owens Padilla Palmer Park Parks Patel Patterson Payne Pearson Pena Perez
Perkins Perry Peters Peterson Phillips Pierce Powell Powers Price Quinn Ramirez Ramos Ramsey Ray
Reed Reeves Reid Reyes Reynolds Rhodes Rice Richards Richardson Riley Rios Rivera Robbins
Roberts Robertson Robinson Rodriguez Rogers Ross Ruiz Russell Ryan Salazar Sanchez Sanders
Sandoval Santiago Santos Schmidt Schneider Schultz Schwartz Sharp Shaw Shelton Silva Simmons
Simon Simpson Sims Snyder Soto Stanley Steele Stephens Stevens Stone Sullivan Sutton Swanson
Terry Thomas Thompson Thornton Torres Tran Tucker Valdez Vargas Vasquez Vaughn Vazquez Vega Wade
Wagner Wallace Walsh Walters Warner Warren Watkins Watson Watts Webb Weber Welch Wells West
Williams Williamson Willis Wilson Wolfe Wong Wood Woods Wright Young Zimmerman
""".split()

MAX_PEOPLE = len(FIRST_NAMES) * len(LAST_NAMES)


def people(stream: str, count: int) -> list[str]:
    """Draw ``count`` distinct full names ("Grace Miller").

    First names and last names are each dealt in random order, so that few subjects share one: the k-th
    block of len(FIRST_NAMES) subjects pairs the first names with the last names shifted by a random
    offset that no other block has.

    Raises:
        UserError: more subjects than the list has full names.
    """
    if count > MAX_PEOPLE:
        raise UserError(
            f"{count:,} subjects are more than the {MAX_PEOPLE:,} names there are. Lower --n, --m-train or --m-test."
        )
    first = streams.shuffled(f"{stream}/first", FIRST_NAMES)
    last = streams.shuffled(f"{stream}/last", LAST_NAMES)
    offsets = streams.permutation(f"{stream}/offset", len(last))
    names = []
    for i in range(count):
        block, j = divmod(i, len(first))
        names.append(f"{first[j]} {last[(j + offsets[block]) % len(last)]}")
    return names
